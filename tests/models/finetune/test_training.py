"""The training: killed and resumed, in pieces, in two processes, and every early end that is worth a sentence.

Parents are tiny, but true models; pairs lie in true shards.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tiny_training import MACHINE, RECIPE, Heard, made_pairs, made_validation, measured

from models.encoders.encoder import Encoder
from models.errors import LensError
from models.finetune import training
from models.finetune.recipe import Recipe
from models.finetune.shards import Shards
from models.finetune.towers import Towers
from models.finetune.training import Outcome, TrainingLog
from models.finetune.validation import Validation

WEIGHTS = "model.safetensors"


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({**RECIPE.model_dump(), **changes})


def train(
    parent: Path,
    of: Recipe,
    shards: Shards,
    validation: Validation,
    folder: Path,
    log: TrainingLog,
    **machine: Any,
) -> Outcome:
    """On a machine like the tests' own, but for what is given."""
    return training.train(parent, of, shards, validation, folder, log, MACHINE.model_copy(update=machine))


# Twenty-four steps of six epochs; a kill at the tenth finds the eighth's checkpoint.
LONGER = recipe(epochs=6)


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint."""
    weights: dict[str, torch.Tensor] = load_file(max((folder / "checkpoints").iterdir()) / WEIGHTS)
    return weights


def best_weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(outcome.encoder / WEIGHTS)
    return weights


def assert_identical(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def assert_close(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Within 5e-5, a small part of what a step moves them by, but for the keys' biases.

    Another order of sums rounds otherwise, and Adam scales up what rounding makes of a gradient near zero. A key's bias moves all
    scores of a query alike, so its true gradient is zero.
    """
    told = [name for name in one if not name.endswith(("k_proj.bias", "in_proj_bias"))]
    assert one.keys() == other.keys()
    torch.testing.assert_close({n: one[n] for n in told}, {n: other[n] for n in told}, atol=5e-5, rtol=1e-5)


def without_clock(steps: Mapping[int, Mapping[str, float]]) -> dict[int, dict[str, float]]:
    """What was logged, but for what differs from run to run."""
    varies = {"images_per_s", "data_wait_share", "memory_gb"}
    return {step: {name: x for name, x in metrics.items() if name not in varies} for step, metrics in steps.items()}


class TestLearning:
    def test_64_pairs_are_learnt_by_heart(self, siglip: Path, shards: Shards, tmp_path: Path) -> None:
        quick = recipe(epochs=150, batch_size=64, learning_rate=3e-3, weight_decay=0, smallest_crop=1, flip=0, jitter=0)
        by_heart = quick.model_copy(update={"validate_every": 50})
        log = Heard()
        outcome = train(
            siglip, by_heart, shards, made_validation(made_pairs(64), 0), tmp_path, log, checkpoint_every=1000
        )
        assert log.validations[0]["titles/recall@1"] < 0.1
        assert log.validations[150]["titles/recall@1"] == 1.0
        assert outcome.stopped == "all steps were made"
        assert outcome.steps == 150

    def test_it_starts_where_the_paper_starts_for_its_batch(
        self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        log = Heard()
        # The learning rate is 0 in the first step: temperature and bias are as they were.
        train(siglip, recipe(epochs=0.25, warmup_share=0.9), shards, validation, tmp_path, log)
        assert log.steps[1]["temperature"] == pytest.approx(10, rel=1e-2)
        assert log.steps[1]["bias"] == pytest.approx(-math.log(16), rel=1e-2)
        assert 3 < log.steps[1]["loss"] < 15

    def test_what_is_logged(self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path) -> None:
        log = Heard()
        train(siglip, LONGER, shards, validation, tmp_path, log)
        assert list(log.steps) == [10, 20, 24]
        assert list(log.validations) == [0, 8, 16, 24]
        assert log.steps[10].keys() == {
            "loss",
            "learning_rate",
            "temperature",
            "bias",
            "gradient_norm",
            "images_per_s",
            "data_wait_share",
            "memory_gb",
        }
        assert log.steps[10]["learning_rate"] > log.steps[20]["learning_rate"] > log.steps[24]["learning_rate"]
        assert all(figure is not None for figure in log.figures)


class TestRepeating:
    def test_the_same_seed_gives_the_same_weights_and_another_does_not(
        self, dropping_siglip: Path, shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        weights = []
        for name, seed in (("first", 0), ("again", 0), ("other", 1)):
            train(dropping_siglip, recipe(seed=seed), shards, validation, tmp_path / name, Heard())
            weights.append(last_weights(tmp_path / name))
        assert_identical(weights[0], weights[1])
        name = "model.text_model.head.weight"
        assert not torch.equal(weights[0][name], weights[2][name])


class TestPieces:
    @pytest.mark.parametrize(
        "changes",
        [
            {"micro_batch_size": 4},
            {"micro_batch_size": 5},
            {"gradient_checkpointing": True},
            {"micro_batch_size": 4, "gradient_checkpointing": True},
        ],
    )
    def test_end_where_the_whole_batch_ends(
        self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        train(siglip, recipe(), shards, validation, tmp_path / "whole", Heard())
        train(siglip, recipe(), shards, validation, tmp_path / "pieces", Heard(), **changes)
        assert_close(last_weights(tmp_path / "pieces"), last_weights(tmp_path / "whole"))

    def test_bf16_stays_near(self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path) -> None:
        logs = {}
        for precision in ("no", "bf16"):
            AcceleratorState._reset_state(reset_partial_state=True)
            logs[precision] = Heard()
            train(siglip, recipe(precision=precision), shards, validation, tmp_path / precision, logs[precision])
        assert last_weights(tmp_path / "bf16")["model.text_model.head.weight"].dtype == torch.float32
        assert logs["bf16"].steps[4]["loss"] == pytest.approx(logs["no"].steps[4]["loss"], rel=0.02)
        assert logs["bf16"].steps[4]["loss"] != logs["no"].steps[4]["loss"]


def train_until_killed(
    parent: Path, of: Recipe, shards: Shards, validation: Validation, folder: Path, threads: int
) -> None:
    """In a process of its own: at the tenth step, its very end."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    # Sums by another number of threads would differ in their last digits.
    torch.set_num_threads(threads)

    class Killing(Heard):
        def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
            if step == 10:
                pids = [process.pid for process in psutil.Process().children(recursive=True)]
                (folder / "children.json").write_text(json.dumps(pids))
                os.kill(os.getpid(), signal.SIGKILL)

    train(parent, of, shards, validation, folder, Killing(), readers=2)


class TestResumption:
    @pytest.mark.parametrize(("kind", "stop_at"), [("siglip", 20), ("dropping_siglip", 10), ("conv_siglip", 20)])
    def test_ends_as_if_nothing_had_happened(
        self,
        kind: str,
        stop_at: int,
        shards: Shards,
        validation: Validation,
        tmp_path: Path,
        request: pytest.FixtureRequest,
    ) -> None:
        parent = request.getfixturevalue(kind)
        through, stopped, resumed = Heard(), Heard(stop_at=stop_at), Heard()
        expected = train(parent, LONGER, shards, validation, tmp_path / "through", through)
        with pytest.raises(KeyboardInterrupt):
            train(parent, LONGER, shards, validation, tmp_path / "killed", stopped)
        outcome = train(parent, LONGER, shards, validation, tmp_path / "killed", resumed)
        assert_identical(last_weights(tmp_path / "killed"), last_weights(tmp_path / "through"))
        assert_identical(best_weights(outcome), best_weights(expected))
        assert replace(outcome, encoder=expected.encoder) == expected
        # It went on from the last checkpoint, and what was logged before and after is one history.
        assert min(resumed.validations) == {10: 16, 20: 24}[stop_at]
        history = without_clock(stopped.steps | resumed.steps)
        assert history == without_clock(through.steps)
        assert stopped.validations | resumed.validations == through.validations

    def test_killed_for_real_with_readers(
        self, dropping_siglip: Path, fine_shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        shards = fine_shards
        context = multiprocessing.get_context("forkserver")
        process = context.Process(
            target=train_until_killed,
            args=(dropping_siglip, LONGER, shards, validation, tmp_path / "killed", torch.get_num_threads()),
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        children = json.loads((tmp_path / "killed" / "children.json").read_text())
        assert len(children) >= 2
        left = [psutil.Process(pid) for pid in children if psutil.pid_exists(pid)]
        assert not psutil.wait_procs(left, timeout=300)[1]
        resumed = Heard()
        train(dropping_siglip, LONGER, shards, validation, tmp_path / "killed", resumed, readers=2)
        train(dropping_siglip, LONGER, shards, validation, tmp_path / "through", Heard(), readers=2)
        assert list(resumed.validations) == [16, 24]
        assert_identical(last_weights(tmp_path / "killed"), last_weights(tmp_path / "through"))

    def test_what_a_kill_left_half_written_is_not_taken(
        self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            train(siglip, LONGER, shards, validation, tmp_path, Heard(stop_at=10))
        part = tmp_path / "checkpoints" / "000000012.part"
        part.mkdir()
        (part / WEIGHTS).write_bytes(b"half of it")
        resumed = Heard()
        train(siglip, LONGER, shards, validation, tmp_path, resumed)
        assert list(resumed.validations) == [16, 24]

    def test_only_the_last_checkpoint_is_kept(
        self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        train(siglip, LONGER, shards, validation, tmp_path, Heard())
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000024"]

    def test_a_finished_training_makes_no_step_more(
        self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        first = train(siglip, LONGER, shards, validation, tmp_path, Heard())
        again = Heard()
        assert train(siglip, LONGER, shards, validation, tmp_path, again) == first
        assert not again.steps


class TestTheBest:
    def test_is_of_the_best_validation(
        self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        log = Heard()
        outcome = train(siglip, recipe(epochs=6, judged_by="titles/recall@5"), shards, validation, tmp_path, log)
        values = {step: metrics["titles/recall@5"] for step, metrics in log.validations.items()}
        # The first of equals.
        assert outcome.best_step == max(values, key=lambda step: (values[step], -step))
        assert outcome.metrics == log.validations[outcome.best_step]
        found = measured(validation, Towers.load(outcome.encoder))[0]
        assert found["titles/recall@5"] == values[outcome.best_step]
        assert Encoder.load(str(outcome.encoder)).dims == 32

    def test_patience_ends_a_training_that_gets_no_better(
        self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        # So slow that nothing changes.
        idle = recipe(epochs=10, learning_rate=1e-12, patience=2, validate_every=4)
        log = Heard()
        outcome = train(siglip, idle, shards, validation, tmp_path, log)
        assert (outcome.steps, outcome.best_step) == (8, 0)
        assert outcome.stopped == "sessions/ndcg@5 was not better in 2 validations"
        # Its last checkpoint knows that it was the last.
        assert train(siglip, idle, shards, validation, tmp_path, Heard()) == outcome

    def test_without_sessions_titles_decide(
        self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        log = Heard()
        outcome = train(siglip, recipe(), shards, replace(validation, sessions=()), tmp_path, log)
        assert not [name for name in outcome.metrics if not name.startswith("titles/")]
        assert log.figures == [None] * len(log.figures)


class TestEarlyEnds:
    def test_diverged(self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path) -> None:
        wild = recipe(epochs=6, learning_rate=1e6, warmup_share=0.3)
        with pytest.raises(
            LensError, match="(diverged|is nan|is inf).* lower the recipe's learning_rate.* of step 0, is k"
        ):
            train(siglip, wild, shards, validation, tmp_path, Heard(), checkpoint_every=1)
        assert json.loads((tmp_path / "best" / "validation.json").read_text())["step"] == 0
        assert Encoder.load(str(tmp_path / "best" / "encoder")).dims == 32
        assert all(weight.isfinite().all() for weight in last_weights(tmp_path).values())

    def test_a_parent_with_a_broken_weight(
        self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        broken = tmp_path / "broken"
        Towers.load(siglip).save(broken)
        weights = load_file(broken / WEIGHTS)
        weights["text_model.head.weight"][0, 0] = torch.nan
        save_file(weights, broken / WEIGHTS, {"format": "pt"})
        with pytest.raises(LensError, match="the loss of step 1 is nan: choose another parent"):
            train(broken, recipe(), shards, validation, tmp_path / "training", Heard())

    def test_a_full_gpu(
        self,
        siglip: Path,
        shards: Shards,
        validation: Validation,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def too_much(*_: object) -> None:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        with pytest.raises(KeyboardInterrupt):
            train(siglip, LONGER, shards, validation, tmp_path, Heard(stop_at=10))
        kept = last_weights(tmp_path)
        monkeypatch.setattr(Towers, "forward", too_much)
        with pytest.raises(
            LensError, match="memory is too small for 16 pairs at once: set LENS_TRAINING_MICRO_BATCH_SIZE lower"
        ) as end:
            train(siglip, LONGER, shards, validation, tmp_path, Heard())
        assert str(tmp_path / "best" / "encoder") in str(end.value)
        assert_identical(last_weights(tmp_path), kept)

    def test_an_unknown_judge(self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path) -> None:
        with pytest.raises(LensError, match="judged_by 'mrr' is not measured: choose one of titles/recall@1, "):
            train(siglip, recipe(judged_by="mrr"), shards, validation, tmp_path, Heard())

    def test_too_few_pairs(self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path) -> None:
        with pytest.raises(LensError, match="64 pairs are less than a batch of 65"):
            train(siglip, recipe(batch_size=65), shards, validation, tmp_path, Heard())


class TestFrozen:
    @pytest.mark.parametrize("tower", ["image", "text"])
    @pytest.mark.parametrize("kind", ["siglip", "conv_siglip"])
    def test_a_tower_stays_as_it_is(
        self,
        kind: str,
        tower: str,
        shards: Shards,
        validation: Validation,
        tmp_path: Path,
        request: pytest.FixtureRequest,
    ) -> None:
        parent = request.getfixturevalue(kind)
        train(parent, recipe(freeze=[tower]), shards, validation, tmp_path, Heard())
        before, after = load_file(parent / WEIGHTS), last_weights(tmp_path)
        changed = {name for name in before if not torch.equal(before[name], after[f"model.{name}"])}
        images = {name for name in before if name.startswith(("vision_model", "visual"))}
        texts = {name for name in before if name.startswith("text_model")}
        frozen, learning = (images, texts) if tower == "image" else (texts, images)
        assert not changed & frozen
        assert changed & learning
        assert images | texts | {"logit_scale", "logit_bias"} == before.keys()


class TestLowRankUpdates:
    def test_only_they_learn_and_what_is_saved_is_a_plain_model(
        self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        log = Heard()
        rank_two = recipe(epochs=6, lora_rank=2, learning_rate=3e-2, judged_by="titles/recall@10")
        outcome = train(siglip, rank_two, shards, validation, tmp_path, log)
        before, after = load_file(siglip / WEIGHTS), best_weights(outcome)
        assert before.keys() == after.keys()
        assert outcome.best_step > 0
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        projections = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight")
        expected = {name for name in before if ".layers." in name and name.endswith(projections)}
        assert changed == expected | {"logit_scale", "logit_bias"}
        for name in expected:
            assert torch.linalg.matrix_rank(after[name] - before[name], tol=1e-4) <= 2
        # What was measured in training is what the saved model gives.
        assert measured(validation, Towers.load(outcome.encoder))[0] == pytest.approx(outcome.metrics)

    def test_can_be_resumed(self, siglip: Path, shards: Shards, validation: Validation, tmp_path: Path) -> None:
        rank_two = recipe(epochs=6, lora_rank=2, learning_rate=3e-2)
        train(siglip, rank_two, shards, validation, tmp_path / "through", Heard())
        with pytest.raises(KeyboardInterrupt):
            train(siglip, rank_two, shards, validation, tmp_path / "killed", Heard(stop_at=10))
        train(siglip, rank_two, shards, validation, tmp_path / "killed", Heard())
        assert_identical(last_weights(tmp_path / "killed"), last_weights(tmp_path / "through"))


def train_one_of_two(rank: int, folder: Path, parent: Path, shards: Shards, validation: Validation) -> None:
    """Train every recipe as one of two processes, and leave the weights that this one has."""
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) | dict.fromkeys(
        ("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"
    )
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name, (of, machine) in SHARED.items():
        log = Heard()
        train(parent, of, shards, validation, folder / name, log, **machine)
        torch.save(without_clock(log.steps), folder / f"{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


# Recipes, and what two machines with them have in common: a batch is the same pairs, however many devices share it.
SHARED: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "whole": (recipe(epochs=3), {}),
    "pieces": (recipe(epochs=3), {"micro_batch_size": 4}),
    "positives": (recipe(epochs=3, duplicates_by="product", duplicates_as="positive"), {}),
    "resumed": (recipe(epochs=3), {}),
}


class TestTwoProcesses:
    @pytest.fixture(scope="class")
    def together(
        self, tmp_path_factory: pytest.TempPathFactory, siglip: Path, fine_shards: Shards, validation: Validation
    ) -> Path:
        """The folder in which two processes trained every recipe; one of them, from a checkpoint that one process left."""
        folder = tmp_path_factory.mktemp("together")
        with pytest.raises(KeyboardInterrupt):
            train(siglip, SHARED["resumed"][0], fine_shards, validation, folder / "resumed", Heard(stop_at=10))
        torch.multiprocessing.start_processes(
            train_one_of_two, (folder, siglip, fine_shards, validation), nprocs=2, start_method="forkserver"
        )
        return folder

    @pytest.mark.parametrize("name", SHARED)
    def test_end_with_the_weights_of_one(
        self, together: Path, name: str, siglip: Path, fine_shards: Shards, validation: Validation, tmp_path: Path
    ) -> None:
        log = Heard()
        train(siglip, SHARED[name][0], fine_shards, validation, tmp_path, log)
        assert_close(last_weights(together / name), last_weights(tmp_path))
        logged = torch.load(together / f"{name}-0.pt")
        assert logged[12]["loss"] == pytest.approx(log.steps[12]["loss"], rel=1e-4)

    def test_one_of_them_writes_the_log(self, together: Path) -> None:
        assert torch.load(together / "whole-0.pt").keys() == {10, 12}
        assert torch.load(together / "resumed-0.pt").keys() == {10, 12}
        assert not torch.load(together / "whole-1.pt")

    def test_product_duplicates_across_processes_matter(self, together: Path) -> None:
        losses = {name: torch.load(together / f"{name}-0.pt")[12]["loss"] for name in SHARED}
        assert losses["positives"] != pytest.approx(losses["whole"], rel=1e-3)
