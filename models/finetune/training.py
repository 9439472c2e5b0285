"""The training: batches through both towers, the sigmoid loss over all of their pairs, validation and checkpoints.

Devices, processes, mixed precision and checkpoints are Accelerate's. Killed at any step, a training continues from
its last checkpoint with the batch that would have come next.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object, set_seed
from matplotlib.figure import Figure

from models.errors import LensError
from models.finetune.efficiency import flop_per_pair, peak_flops
from models.finetune.gradient_cache import backward_in_pieces
from models.finetune.optimisation import optimiser, schedule
from models.finetune.recipe import Machine, Recipe
from models.finetune.shards import Batch, Device, PairStream, Shards
from models.finetune.sigmoid_loss import INITIAL_BIAS, distributed_sigmoid_loss, sigmoid_loss
from models.finetune.towers import Towers
from models.finetune.validation import Validation, ValidationShare, interleaved

# A loss this many times as high as at the start will not recover.
_DIVERGED = 3.0
_LOG_EVERY = 10
# How long a process waits for the others: longer than one may take to write a checkpoint to a slow volume, or a figure.
_PATIENCE = timedelta(hours=1)
_BEST, _CHECKPOINTS = "best", "checkpoints"
DEFAULT_MACHINE = Machine()  # type: ignore[call-arg]


class TrainingLog(Protocol):
    """Receives a training's progress."""

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None: ...

    def validation(self, step: int, metrics: Mapping[str, float], figure: Figure | None) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """The result of a training: the folder of its best encoder, and how it got there."""

    encoder: Path
    steps: int
    best_step: int
    stopped: str
    metrics: dict[str, float]


@dataclass
class Progress:
    """How far a training is; part of its checkpoints."""

    step: int = 0
    first_loss: float = math.nan
    best: float = -math.inf
    best_step: int = 0
    without_better: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def train(
    parent: Path,
    recipe: Recipe,
    shards: Shards,
    validation: Validation,
    folder: Path,
    log: TrainingLog,
    machine: Machine = DEFAULT_MACHINE,
) -> Outcome:
    """Fine-tune a parent, or continue a training that was killed.

    Args:
        parent: folder of a SigLIP model.
        recipe: how.
        shards: of the training pairs.
        validation: what is measured along the way; the best encoder by it is kept.
        folder: holds checkpoints and the best encoder. One folder belongs to one parent, recipe and set of pairs.
        log: is told of every step.
        machine: how this host computes it; another may go on.

    Raises:
        LensError: the loss is not a number or has diverged, or a GPU's memory is too small; the best encoder and the last
            checkpoint before it are kept. Or the parent or the pairs do not fit.
    """
    training = _Training(parent, recipe, shards, validation, folder, log, machine)
    with _clear_end(folder, training):
        return training.run()


class _Training:
    def __init__(
        self,
        parent: Path,
        recipe: Recipe,
        shards: Shards,
        validation: Validation,
        folder: Path,
        log: TrainingLog,
        machine: Machine,
    ) -> None:
        self.recipe, self.shards, self.validation, self.folder, self.log = recipe, shards, validation, folder, log
        self.machine = machine
        patience = InitProcessGroupKwargs(timeout=_PATIENCE)
        self.accelerator = Accelerator(mixed_precision=recipe.precision, kwargs_handlers=[patience])
        set_seed(recipe.seed)
        self.towers = Towers.load(parent)
        self.towers.prepare(recipe, gradient_checkpointing=machine.gradient_checkpointing)
        self.device = Device(self.accelerator.process_index, self.accelerator.num_processes)
        self.steps = max(1, math.floor(recipe.epochs * shards.rows / recipe.batch_size))
        self.progress = Progress()
        of = optimiser(self.towers, recipe)
        # The schedule is stepped once per step here, whatever the number of processes.
        self.schedule = schedule(of, recipe, self.steps)
        self.model, self.optimiser = self.accelerator.prepare(self.towers, of)
        self.accelerator.register_for_checkpointing(self.schedule, self.progress)
        self.peak_pairs_per_s = self._peak_pairs_per_s()
        # Sessions are ranked by images alone, which do not change when their tower is frozen.
        default = "titles/recall@10" if "image" in recipe.freeze else validation.default_metric
        self.judged_by = recipe.judged_by or default
        self.metrics: dict[str, float] = {}

    def run(self) -> Outcome:
        self._resume()
        stream = PairStream(
            self.shards,
            self.recipe,
            self.towers.tokenize.ids,
            self.towers.side,
            device=self.device,
            readers=self.machine.readers,
            done=self.progress.step,
        )
        # Its processes take seconds to start: they do so while the parent is validated.
        batches = stream.batches()
        if self.progress.step == 0:
            self._validate()
        stopped = "all steps were made"
        # Models are loaded in evaluation mode, and a resumed training is not validated first.
        self.model.train()
        self._begin_counting()
        while self.progress.step < self.steps and self.progress.without_better < self.recipe.patience:
            asked = time.perf_counter()
            parts = next(batches)
            self._waited_s += time.perf_counter() - asked
            self._step(parts)
            last = self.progress.step == self.steps
            if self.progress.step % self.recipe.validate_every == 0 or last:
                self._validate()
                self._begin_counting()
            if self.progress.step % self.machine.checkpoint_every == 0:
                self._save_checkpoint()
        if self.progress.without_better >= self.recipe.patience:
            stopped = f"{self.judged_by} was not better in {self.recipe.patience} validations"
        best = json.loads((self.folder / _BEST / "validation.json").read_text())
        return Outcome(self.folder / _BEST / "encoder", self.progress.step, best["step"], stopped, best["metrics"])

    def _peak_pairs_per_s(self) -> float | None:
        """What all devices together could do at the recipe's precision; None if that is not known."""
        if self.accelerator.device.type != "cuda" or self.recipe.precision != "bf16":
            return None
        peak = peak_flops(torch.cuda.get_device_name(self.accelerator.device))
        return peak and peak * self.device.of / flop_per_pair(self.towers)

    @property
    def at_once(self) -> int:
        """Pairs of a forward pass."""
        return self.machine.micro_batch_size or self.recipe.batch_size // self.device.of

    # ---- one step ---------------------------------------------------------------------------------------------------

    def _step(self, parts: Sequence[Batch]) -> None:
        batch = Batch.concatenate([part.to(self.accelerator.device) for part in parts])
        self.optimiser.zero_grad()
        on_device = self._backward(batch)
        clipped = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_gradient_norm)
        # Both at once: the host waits for the device here, and nowhere else in a step.
        loss, norm = torch.stack([on_device.float(), torch.as_tensor(clipped).float()]).tolist()
        self._check(loss, "loss")
        self._check(norm, "gradient")
        self.optimiser.step()
        self.schedule.step()
        self.progress.step += 1
        if math.isnan(self.progress.first_loss):
            # Random weights soon lose more than at their start, where nothing is like anything else.
            self.progress.first_loss = loss if self.towers.was_trained else max(loss, -INITIAL_BIAS)
        if self.progress.step % _LOG_EVERY == 0 or self.progress.step == self.steps:
            self._log(loss, norm)

    def _backward(self, batch: Batch) -> torch.Tensor:
        """Leave the gradient of the global batch's loss in the parameters. Returns the loss."""
        if self.machine.micro_batch_size is None:
            loss = self._loss(*self._embed(batch), groups=batch.groups)
            self.accelerator.backward(loss)
            return loss.detach()
        return backward_in_pieces(
            self._embed,
            batch.split(self.machine.micro_batch_size),
            lambda images, texts: self._loss(images, texts, groups=batch.groups),
            (self.towers.log_scale, self.towers.bias),
            self.accelerator.backward,
            lambda: self.accelerator.no_sync(self.model),
        )

    def _embed(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images, texts = self.model(batch.pixels, batch.tokens)
        return images, texts

    def _loss(self, images: torch.Tensor, texts: torch.Tensor, *, groups: torch.Tensor) -> torch.Tensor:
        # A pair may come twice at an epoch's end, so rows can be the same thing whatever the recipe says.
        of = distributed_sigmoid_loss if self.device.of > 1 else sigmoid_loss
        return of(images, texts, self.towers.log_scale, self.towers.bias, groups, self.recipe.duplicates_as)

    def _begin_counting(self) -> None:
        self._logged_at, self._logged_step, self._waited_s = time.perf_counter(), self.progress.step, 0.0

    def _check(self, value: float, what: str) -> None:
        step = self.progress.step + 1
        if not math.isfinite(value):
            remedy = "lower the recipe's learning_rate" if step > 1 else "choose another parent, or another precision"
            raise LensError(f"the {what} of step {step} is {value}: {remedy}")
        if what == "loss" and value > _DIVERGED * self.progress.first_loss:
            raise LensError(
                f"the training diverged: the loss of step {step} is {value:.3g}, after {self.progress.first_loss:.3g} at "
                "the start: lower the recipe's learning_rate, or give it a longer warmup_share"
            )

    def _log(self, loss: float, norm: float) -> None:
        """Log a step; rates and shares cover the time since the last logged step."""
        elapsed_s, steps = time.perf_counter() - self._logged_at, self.progress.step - self._logged_step
        images_per_s = steps * self.recipe.batch_size / elapsed_s
        waited = self._waited_s / elapsed_s
        self._begin_counting()
        if self.accelerator.is_main_process:
            metrics: dict[str, float] = {
                "loss": loss,
                "learning_rate": float(self.optimiser.param_groups[-1]["lr"]),
                "temperature": float(self.towers.log_scale.detach().exp()),
                "bias": float(self.towers.bias.detach()),
                "gradient_norm": norm,
                "images_per_s": images_per_s,
                "data_wait_share": waited,
                "memory_gb": _memory_bytes() / 1e9,
            }
            if self.peak_pairs_per_s:
                metrics["model_flops_utilisation"] = images_per_s / self.peak_pairs_per_s
            self.log.step(self.progress.step, self.steps, metrics)

    # ---- validation -------------------------------------------------------------------------------------------------

    @cached_property
    def _share(self) -> ValidationShare:
        return ValidationShare(self.validation, self.towers, self.device)

    def _validate(self) -> None:
        """Measure, keep the encoder if it is the best so far, and count validations without a better one."""
        self.model.eval()
        with self.accelerator.autocast():
            share = self._share.embed(self.towers)
        self.model.train()
        photos, titles = map(interleaved, zip(*gather_object([share]), strict=True))
        figure = None
        if self.accelerator.is_main_process:
            self.metrics, figure = self.validation.measure(photos, titles)
        # One process measures for all: two that differ in the last digit would not stop at the same step.
        [self.metrics] = broadcast_object_list([self.metrics])
        if self.judged_by not in self.metrics:
            raise LensError(f"judged_by {self.judged_by!r} is not measured: choose one of {', '.join(self.metrics)}")
        value = self.metrics[self.judged_by]
        better = value > self.progress.best
        if better:
            self.progress.best, self.progress.best_step, self.progress.without_better = value, self.progress.step, 0
        else:
            self.progress.without_better += 1
        if self.accelerator.is_main_process:
            self.log.validation(self.progress.step, self.metrics, figure)
            if better:
                self._save_best()
        self.accelerator.wait_for_everyone()

    def _save_best(self) -> None:
        with _whole(self.folder / _BEST) as part:
            self.towers.save(part / "encoder")
            about = {"step": self.progress.step, "metrics": self.metrics}
            (part / "validation.json").write_text(json.dumps(about, indent=2))

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        final = self.folder / _CHECKPOINTS / f"{self.progress.step:09d}"
        part = final.with_name(f"{final.name}.part")
        self.accelerator.save_state(str(part))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
            for older in _checkpoints(self.folder)[:-1]:
                shutil.rmtree(older)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        if self.accelerator.is_main_process:
            _restore(self.folder / _BEST)
        if found := _checkpoints(self.folder):
            self.accelerator.load_state(str(found[-1]))


def _checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, by step."""
    return sorted(path for path in (folder / _CHECKPOINTS).glob("*") if path.name.isdigit())


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, which replaces another once it is complete."""
    part, old = folder.with_name(f"{folder.name}.part"), folder.with_name(f"{folder.name}.old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _restore(folder: Path) -> None:
    """Restore what `_whole` was killed in the middle of replacing."""
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)


@contextmanager
def _clear_end(folder: Path, training: _Training) -> Iterator[None]:
    """Add to an early end's error what is kept, and to a full GPU's what to do."""
    kept = "nothing was kept"
    try:
        yield
    except (LensError, torch.cuda.OutOfMemoryError) as err:
        if (folder / _BEST).exists():
            kept = f"the best encoder so far, of step {training.progress.best_step}, is kept in {folder / _BEST / 'encoder'}"
        if isinstance(err, LensError):
            raise LensError(f"{err}; {kept}") from err
        raise LensError(
            f"the GPU's memory is too small for {training.at_once} pairs at once: set LENS_TRAINING_MICRO_BATCH_SIZE lower, or "
            f"LENS_TRAINING_GRADIENT_CHECKPOINTING; {kept}"
        ) from err


def _memory_bytes() -> int:
    """The GPU's peak memory, or the process's current memory where there is no GPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)
