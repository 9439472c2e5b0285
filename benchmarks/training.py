"""The training program against the same model in a bare PyTorch loop on data in memory.

Ours streams JPEGs from shards on disk, decodes, augments and tokenises, trains, logs and clips gradients; the bare loop gets
the same batch of tensors repeatedly. Model, loss, optimiser and precision are the same. Prints images per second of both.

    python -m benchmarks.training --size small
    python -m benchmarks.training --size base --device cuda --batch 256 --steps 60 --readers 12 --precision bf16
    accelerate launch --num_processes 8 -m benchmarks.training --size base --device cuda --batch 2048 --steps 60 --readers 8 \
        --precision bf16

`base` has the shape of google/siglip-base-patch16-256, with random weights. With several devices, the peer is one of them on
its share of the batch, times their number: what they would do if they never waited for each other. On a GPU whose peak is
known, the utilisation is also printed: the floating-point operations of a step's matrix products, over what it could do.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.encoders.small_siglip import save_untrained_siglip
from models.finetune.efficiency import peak_flops
from models.finetune.optimisation import optimiser
from models.finetune.recipe import Machine, Recipe
from models.finetune.shards import Batch, Shards
from models.finetune.sigmoid_loss import sigmoid_loss
from models.finetune.towers import Towers
from models.finetune.training import train
from models.finetune.validation import Validation

_RUNS = 5
# Warm-up steps on either side: readers start, memory is allocated.
_WARM = 10
_PHOTO_SIDE = 288
# Readers share what is read by whole lanes of row groups.
_GROUPS_PER_READER = 32
_SIZES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "small": (
        {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6},
        {"image_size": 128, "patch_size": 16, "max_position_embeddings": 32, "vocab_size": 2048},
    ),
    "base": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        {"image_size": 256, "patch_size": 16, "max_position_embeddings": 64, "vocab_size": 32000},
    ),
}


def main() -> None:
    """Alternate between the two, so that changes in the machine's speed affect both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=_SIZES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="of a run; rounded up to tens")
    parser.add_argument("--readers", type=int, default=1)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--runs", type=int, default=_RUNS)
    given = parser.parse_args()
    if given.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        if "RANK" in os.environ:
            # Accelerate brings GPUs together by itself, but CPUs only by MPI.
            torch.distributed.init_process_group("gloo")
    # The training logs every tenth step.
    steps = -(-given.steps // _WARM) * _WARM
    recipe = Recipe(
        epochs=1,
        batch_size=given.batch,
        precision=given.precision,
        validate_every=10**9,
        validation_sessions=0,
    )
    machine = Machine(readers=given.readers, checkpoint_every=10**9)
    devices = PartialState(cpu=given.device == "cpu")
    with _shared_folder(devices) as home:
        if devices.is_main_process:
            _save_parent(home / "parent", given.size)
            groups = _GROUPS_PER_READER * given.readers * devices.num_processes + 4
            _write_shards(home / "pairs", given.batch * (steps + _WARM), groups)
        devices.wait_for_everyone()
        parent, shards = home / "parent", _open_shards(home / "pairs")
        share = recipe.model_copy(update={"batch_size": given.batch // devices.num_processes})
        loop = _BareLoop(parent, share, devices.device)
        loop.run(_WARM)
        rates: dict[str, list[float]] = {"ours": [], "bare": []}
        for run in range(given.runs):
            rates["ours"].append(_train(parent, recipe, shards, home / f"run-{run}", machine))
            # All of them compute at once here too: those of one machine share its power and memory.
            rates["bare"].append(given.batch * steps / loop.run(steps))
        if devices.is_main_process:
            _print(given, devices.num_processes, rates, loop.flops() / share.batch_size)


@contextmanager
def _shared_folder(devices: PartialState) -> Iterator[Path]:
    """A temporary folder of all processes."""
    made = [tempfile.mkdtemp() if devices.is_main_process else None]
    [folder] = broadcast_object_list(made)
    yield Path(str(folder))
    devices.wait_for_everyone()
    if devices.is_main_process:
        shutil.rmtree(str(folder))


def _print(given: argparse.Namespace, devices: int, rates: dict[str, list[float]], flop: float) -> None:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [ours / bare for ours, bare in zip(rates["ours"], rates["bare"], strict=True)]
    where = f"cpu, {torch.get_num_threads()} threads" if given.device == "cpu" else torch.cuda.get_device_name()
    print(
        f"SigLIP {given.size}, batches of {given.batch}, {given.precision}, {given.readers} readers, {devices} × {where}"
    )
    print(f"  trained from shards:  {medians['ours']:.1f} images/s (runs: {_listed(rates['ours'])})")
    print(f"  bare PyTorch loop:    {medians['bare']:.1f} images/s (runs: {_listed(rates['bare'])})")
    print(f"  ratio of neighbours, median of {given.runs}: {statistics.median(ratios):.2f}")
    peak = peak_flops(where)
    if peak:
        print(
            f"  {flop / 1e9:.1f} GFLOP an image: {flop * medians['ours'] / (peak * devices):.0%} of {peak / 1e12:.0f} TFLOP/s"
        )


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)


# ---- ours --------------------------------------------------------------------------------------------------------------


class _Clock:
    """A training log that measures the time from the tenth step to the last."""

    def __init__(self) -> None:
        self.first = (0, 0.0)
        self.last = (0, 0.0)

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self.last = (step, time.perf_counter())
        if step == _WARM:
            self.first = self.last

    def validation(self, step: int, metrics: Mapping[str, float], figure: Figure | None) -> None:
        pass


def _train(parent: Path, recipe: Recipe, shards: Shards, folder: Path, machine: Machine) -> float:
    """Images per second of a training run, without its start; not a number where another process is told its steps."""
    clock = _Clock()
    # One validation pair, evaluated before the first step and after the last.
    train(parent, recipe, shards, Validation(shards.head(1), (), {}), folder, clock, machine)
    (first, began), (last, ended) = clock.first, clock.last
    if not last:
        return math.nan
    return recipe.batch_size * (last - first) / (ended - began)


# ---- the peer ----------------------------------------------------------------------------------------------------------


class _BareLoop:
    """Forward, loss, backward and step, on one batch on the model's device."""

    def __init__(self, parent: Path, recipe: Recipe, device: torch.device) -> None:
        self.towers = Towers.load(parent)
        self.towers.prepare(recipe)
        self.towers.to(device).train()
        self.optimiser = optimiser(self.towers, recipe)
        self.recipe, self.device = recipe, device
        pixels = torch.randint(0, 256, (recipe.batch_size, 3, self.towers.side, self.towers.side), dtype=torch.uint8)
        tokens = self.towers.tokenize.ids([f"thing {number}" for number in range(recipe.batch_size)])
        self.batch = Batch(pixels, tokens, torch.arange(recipe.batch_size)).to(device)

    def run(self, steps: int) -> float:
        """The seconds that a number of steps take."""
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            self._step()
        self._wait()
        return time.perf_counter() - start

    def flops(self) -> int:
        """Floating-point operations of one step's matrix products, forward and backward."""
        with FlopCounterMode(display=False) as counter:
            self._step()
        return int(counter.get_total_flops())

    def _step(self) -> None:
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            images, texts = self.towers(self.batch.pixels, self.batch.tokens)
        scale, bias, groups = self.towers.log_scale, self.towers.bias, self.batch.groups
        sigmoid_loss(images, texts, scale, bias, groups, self.recipe.duplicates_as).backward()
        self.optimiser.step()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


# ---- inputs ------------------------------------------------------------------------------------------------------------


def _save_parent(folder: Path, size: str) -> Path:
    tower, shape = _SIZES[size]
    vision = {name: shape[name] for name in ("image_size", "patch_size")}
    text = {name: shape[name] for name in ("max_position_embeddings", "vocab_size")}
    config = SiglipConfig(
        text_config={**tower, **text, "projection_size": tower["hidden_size"]}, vision_config={**tower, **vision}
    )
    # Keep the tokenizer; replace the weights and preprocessing of the smaller model.
    save_untrained_siglip(folder)
    SiglipModel(config).save_pretrained(folder)
    side = shape["image_size"]
    SiglipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def _write_shards(folder: Path, count: int, groups: int) -> None:
    """The given number of pairs in one shard, with soft, noisy JPEGs of the size that `sample_pairs` stores."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    photos = [_photo(rng) for _ in range(min(count, 256))]
    rows = [
        {"item_id": str(n), "title": f"title of thing {n}", "product_id": None, "image": photos[n % len(photos)]}
        for n in range(count)
    ]
    schema = pa.schema([(name, pa.string()) for name in ("item_id", "title", "product_id")] + [("image", pa.binary())])
    path = folder / "0.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=max(1, count // groups))


def _open_shards(folder: Path) -> Shards:
    return Shards.open(fsspec.filesystem("file"), [str(path) for path in folder.glob("*.parquet")])


def _photo(rng: np.random.Generator) -> bytes:
    shades = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(shades.resize((_PHOTO_SIDE * 4 // 3, _PHOTO_SIDE), Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(pixels + rng.integers(-6, 7, pixels.shape), 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(noisy).save(data, "JPEG", quality=95)
    return data.getvalue()


if __name__ == "__main__":
    main()
