"""The sigmoid loss: against numbers worked out by hand, a double loop in float64, and the mistakes that are made with it.

The mistakes are those of papers, issues and public implementations; each test of `TestKnownMistakes` names one.
"""

from __future__ import annotations

import math
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from models.errors import LensError
from models.finetune.sigmoid_loss import (
    INITIAL_BIAS,
    INITIAL_LOG_SCALE,
    Duplicates,
    distributed_sigmoid_loss,
    sigmoid_loss,
)

CHOICES = get_args(Duplicates)


@dataclass
class Batch:
    """Rows to compare, and the loss's own two numbers; leaves that gather gradients."""

    images: Tensor
    texts: Tensor
    log_scale: Tensor
    bias: Tensor
    groups: Tensor

    @classmethod
    def drawn(cls, rows: int, dims: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
        """About half of the rows share a group with another. Temperature and bias as after some training."""
        random = torch.Generator().manual_seed(seed)
        images, texts = (normalize(torch.randn(rows, dims, generator=random, dtype=torch.float64)) for _ in range(2))
        groups = torch.randint(0, max(1, rows), (rows,), generator=random) * 7_000_000_000
        numbers = (images, texts, torch.tensor(1.7), torch.tensor(-2.3))
        return cls(*(x.to(dtype).requires_grad_() for x in numbers), groups)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.images, self.texts, self.log_scale, self.bias]

    def loss(self, duplicates: Duplicates = "negative", chunk: int = 1024) -> Tensor:
        return sigmoid_loss(*self.leaves, self.groups, duplicates, chunk)

    def gradients(self, duplicates: Duplicates = "negative", chunk: int = 1024) -> list[Tensor]:
        return list(torch.autograd.grad(self.loss(duplicates, chunk), self.leaves))


def by_double_loop(batch: Batch, duplicates: Duplicates = "negative") -> float:
    """Algorithm 1 of the paper, pair by pair, in float64."""
    images, texts, log_scale, bias = (x.detach().double().numpy() for x in batch.leaves)
    groups = batch.groups.numpy()
    total = 0.0
    for i in range(len(images)):
        for j in range(len(texts)):
            twins = i != j and groups[i] == groups[j]
            if twins and duplicates == "mask":
                continue
            z = 1 if i == j or (twins and duplicates == "positive") else -1
            logit = math.exp(log_scale) * float(images[i] @ texts[j]) + float(bias)
            total += float(np.logaddexp(0, -z * logit))
    return total / len(images)


def by_autograd(batch: Batch, duplicates: Duplicates) -> list[Tensor]:
    """The gradients as autograd derives them from the whole matrix of pairs."""
    same = batch.groups[:, None] == batch.groups
    own = torch.eye(len(same), dtype=torch.bool)
    signs = torch.where(own | (same if duplicates == "positive" else own), 1.0, -1.0)
    asked = own | ~same if duplicates == "mask" else torch.ones_like(own)
    logits = batch.log_scale.exp() * batch.images @ batch.texts.T + batch.bias
    loss = -(torch.nn.functional.logsigmoid(signs * logits) * asked).sum() / len(own)
    return list(torch.autograd.grad(loss, batch.leaves))


class TestByHand:
    """Two images, (1, 0) and (0, 1); two titles, (1, 0) and (0.6, 0.8); temperature 2 and bias −1.

    The similarities are [[1, 0.6], [0, 0.8]], so the logits are [[1, 0.2], [−1, 0.6]].
    """

    @pytest.fixture
    def batch(self) -> Batch:
        numbers = ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]], math.log(2), -1.0)
        leaves = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers)
        return Batch(*leaves, groups=torch.tensor([5, 5]))

    def test_value(self, batch: Batch) -> None:
        # −log σ(1) − log σ(−0.2) − log σ(1) − log σ(0.6), over two images.
        assert batch.loss().item() == pytest.approx((0.3132617 + 0.7981389 + 0.3132617 + 0.4374879) / 2, abs=1e-7)

    def test_gradients(self, batch: Batch) -> None:
        # σ(logit), less 1 where the pair belongs together; over two images.
        a, b, c, d = -0.2689414 / 2, 0.5498340 / 2, 0.2689414 / 2, -0.3543437 / 2
        images, texts, log_scale, bias = batch.gradients()
        torch.testing.assert_close(images, 2 * torch.tensor([[a + 0.6 * b, 0.8 * b], [c + 0.6 * d, 0.8 * d]]).double())
        torch.testing.assert_close(texts, 2 * torch.tensor([[a, c], [b, d]]).double())
        assert log_scale.item() == pytest.approx(2 * (a * 1 + b * 0.6 + c * 0 + d * 0.8), abs=1e-7)
        assert bias.item() == pytest.approx(a + b + c + d, abs=1e-7)

    def test_duplicates_as_positives(self, batch: Batch) -> None:
        # The pairs off the diagonal now cost −log σ(0.2) and −log σ(−1).
        expected = (0.3132617 + 0.5981389 + 1.3132617 + 0.4374879) / 2
        assert batch.loss("positive").item() == pytest.approx(expected, abs=1e-7)

    def test_duplicates_masked(self, batch: Batch) -> None:
        assert batch.loss("mask").item() == pytest.approx((0.3132617 + 0.4374879) / 2, abs=1e-7)


class TestAlgebra:
    @settings(max_examples=60)
    @given(
        rows=st.integers(1, 12),
        dims=st.integers(1, 5),
        chunk=st.integers(1, 14),
        duplicates=st.sampled_from(CHOICES),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_any_chunk_is_the_double_loop(
        self, rows: int, dims: int, chunk: int, duplicates: Duplicates, seed: int
    ) -> None:
        batch = Batch.drawn(rows, dims, seed)
        assert batch.loss(duplicates, chunk).item() == pytest.approx(by_double_loop(batch, duplicates), rel=1e-9)
        torch.testing.assert_close(batch.gradients(duplicates, chunk), by_autograd(batch, duplicates))

    @pytest.mark.parametrize("duplicates", CHOICES)
    def test_gradcheck(self, duplicates: Duplicates) -> None:
        batch = Batch.drawn(7, 3)
        assert torch.autograd.gradcheck(
            lambda *leaves: sigmoid_loss(*leaves, batch.groups, duplicates, 3), batch.leaves
        )

    def test_all_rows_of_one_group(self) -> None:
        batch = Batch.drawn(5)
        batch.groups = torch.zeros(5, dtype=torch.int64)
        images, texts, log_scale, bias = (x.detach() for x in batch.leaves)
        logits = log_scale.exp() * images @ texts.T + bias
        torch.testing.assert_close(batch.loss("positive"), torch.nn.functional.softplus(-logits).sum() / 5)
        torch.testing.assert_close(batch.loss("mask"), torch.nn.functional.softplus(-logits.diagonal()).sum() / 5)

    def test_extreme_temperatures_stay_finite(self) -> None:
        batch = Batch.drawn(8, dtype=torch.float32)
        batch.log_scale.data.fill_(9.0)
        assert batch.loss().item() == pytest.approx(by_double_loop(batch), rel=1e-5)
        assert all(gradient.isfinite().all() for gradient in batch.gradients())

    def test_a_frozen_tower_gets_no_gradient(self) -> None:
        batch = Batch.drawn(4)
        batch.images.requires_grad_(False)
        batch.loss().backward()
        assert batch.images.grad is None
        assert batch.texts.grad is not None


class TestKnownMistakes:
    def test_the_temperature_is_learned_as_its_logarithm(self) -> None:
        # Used as it is, the temperature of a trained model falls from 112 to 4.7 (open_clip issue 746).
        one = torch.tensor([[0.6, 0.8]])
        loss = sigmoid_loss(one, one, torch.tensor(math.log(3)), torch.tensor(-1.0))
        assert loss.item() == pytest.approx(math.log1p(math.exp(-2)), rel=1e-6)

    def test_the_bias_is_added(self) -> None:
        # Subtracted, or left out as in open_clip issue 1076, a start at −10 makes partners nearly free.
        image, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        loss = sigmoid_loss(image, text, torch.tensor(INITIAL_LOG_SCALE), torch.tensor(INITIAL_BIAS))
        assert loss.item() == pytest.approx(10.0000454, rel=1e-6)

    def test_it_starts_where_the_paper_starts(self) -> None:
        # transformers' SiglipModel(config) starts both at 0: every pair is a toss-up, and the loss is n · log 2.
        images, texts = (normalize(torch.randn(256, 768, generator=torch.Generator().manual_seed(i))) for i in (0, 1))
        start = sigmoid_loss(images, texts, torch.tensor(INITIAL_LOG_SCALE), torch.tensor(INITIAL_BIAS))
        assert start.item() == pytest.approx(10, abs=0.5)

    def test_the_sum_is_divided_by_images_not_by_pairs(self) -> None:
        # A mean over pairs makes loss and gradients smaller by a factor of n (big_vision issue 115).
        images, texts = torch.tensor([[1.0, 0.0]]).expand(50, 2), torch.tensor([[0.0, 1.0]]).expand(50, 2)
        loss = sigmoid_loss(images, texts, torch.zeros(()), torch.zeros(()))
        assert loss.item() == pytest.approx(50 * math.log(2))

    def test_it_is_the_loss_of_transformers_whose_logits_lie_the_other_way(self) -> None:
        # Imported here, so that the processes below need not.
        from transformers import SiglipConfig, SiglipModel

        # SiglipModel's loss has titles for rows and takes the mean of their sums, which is the same for a square.
        tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = SiglipConfig(
            text_config={**tower, "vocab_size": 30, "max_position_embeddings": 8, "projection_size": 16},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
        )
        torch.manual_seed(0)
        model = SiglipModel(config).eval()
        model.logit_scale.data.fill_(1.5)
        model.logit_bias.data.fill_(-3.0)
        output = model(torch.randint(0, 30, (6, 8)), torch.randn(6, 3, 16, 16), return_loss=True)
        loss = sigmoid_loss(output.image_embeds, output.text_embeds, model.logit_scale, model.logit_bias)
        torch.testing.assert_close(loss, output.loss)
        ours, theirs = (
            torch.autograd.grad(x, list(model.parameters()), retain_graph=True) for x in (loss, output.loss)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    def test_logits_are_float32_under_autocast(self) -> None:
        batch = Batch.drawn(64, dtype=torch.float32)
        batch.log_scale.data.fill_(4.7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = batch.loss()
        torch.testing.assert_close(loss, batch.loss(), rtol=0, atol=0)

    def test_bfloat16_embeddings_get_bfloat16_gradients_of_float32_logits(self) -> None:
        batch = Batch.drawn(64, dtype=torch.float32)
        halves = Batch(*(x.detach().bfloat16().requires_grad_() for x in batch.leaves), batch.groups)
        rounded = Batch(*(x.detach().float().requires_grad_() for x in halves.leaves), batch.groups)
        torch.testing.assert_close(halves.loss(), rounded.loss())
        for half, whole in zip(halves.gradients(), rounded.gradients(), strict=True):
            torch.testing.assert_close(half, whole.bfloat16())

    def test_no_matrix_of_all_pairs_is_kept(self) -> None:
        # Chunks that autograd keeps for its backward pass save nothing (open_clip issue 942, pull request 1214).
        batch, kept = Batch.drawn(256, 4), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), lambda _: None):
            batch.loss(chunk=16)
        assert sum(kept) == 2 * 256 * 4 + 2


class TestRefusals:
    def test_shapes_that_do_not_belong_together(self) -> None:
        batch = Batch.drawn(4)
        with pytest.raises(LensError, match=r"as many images as titles.*\(4, 6\) and \(3, 6\)"):
            sigmoid_loss(batch.images, batch.texts[:3], batch.log_scale, batch.bias)

    def test_an_empty_batch(self) -> None:
        with pytest.raises(LensError, match="at least one"):
            sigmoid_loss(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(()), torch.zeros(()))

    def test_a_temperature_for_each_dimension(self) -> None:
        batch = Batch.drawn(4)
        with pytest.raises(LensError, match="not 6 and 1 numbers"):
            sigmoid_loss(batch.images, batch.texts, torch.zeros(6), batch.bias)

    def test_an_unknown_choice(self) -> None:
        with pytest.raises(LensError, match="negative, positive, mask, not 'drop'"):
            Batch.drawn(4).loss("drop")  # type: ignore[arg-type]

    @pytest.mark.parametrize("groups", [None, torch.zeros(3, dtype=torch.int64)])
    def test_duplicates_without_groups(self, groups: Tensor | None) -> None:
        with pytest.raises(LensError, match="without a group for each of the 4 rows"):
            sigmoid_loss(*Batch.drawn(4).leaves, groups, "mask")

    def test_an_empty_chunk(self) -> None:
        with pytest.raises(LensError, match="cannot compare 0 titles at a time"):
            Batch.drawn(4).loss(chunk=0)

    def test_several_processes_that_have_not_met(self) -> None:
        with pytest.raises(LensError, match="initialise it, or call sigmoid_loss"):
            distributed_sigmoid_loss(*Batch.drawn(4).leaves)


# Which of three processes share the batch, and where its 12 rows are cut. Two are neighbours to both sides of each other.
WORLDS: dict[str, tuple[list[int], list[int]]] = {
    "one": ([0], [12]),
    "two": ([1, 2], [6, 6]),
    "three": ([0, 1, 2], [4, 4, 4]),
    "three, unequal": ([0, 1, 2], [5, 1, 6]),
}


def run_one_of_three(rank: int, folder: Path) -> None:
    """Leave what this process computed in every world that it is part of."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
    torch.set_num_threads(1)
    whole, results = Batch.drawn(12), {}
    for name, (members, sizes) in WORLDS.items():
        processes = dist.new_group(members)
        if rank not in members:
            continue
        own = [
            part.detach().clone() for part in (x.split(sizes)[members.index(rank)] for x in (whole.images, whole.texts))
        ]
        groups = whole.groups.split(sizes)[members.index(rank)]
        leaves = [x.requires_grad_() for x in (*own, whole.log_scale.detach(), whole.bias.detach())]
        for duplicates in CHOICES:
            loss = distributed_sigmoid_loss(*leaves, groups, duplicates, chunk=3, processes=processes)
            results[name, duplicates] = (loss.detach(), list(torch.autograd.grad(loss, leaves)))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of three processes computed."""
    folder = tmp_path_factory.mktemp("processes")
    # Forked from a server that has imported torch once.
    multiprocessing.set_forkserver_preload(["torch"])
    torch.multiprocessing.start_processes(run_one_of_three, (folder,), nprocs=3, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize("duplicates", CHOICES)
@pytest.mark.parametrize("world", WORLDS)
class TestSeveralProcesses:
    """All of it equals one process that holds the whole batch; gradients after the mean that data parallelism takes."""

    def test_every_process_has_the_loss_of_the_whole(
        self, of_three: list[dict[Any, Any]], world: str, duplicates: Duplicates
    ) -> None:
        # Blocks of strangers alone need the bias too; without an exchange, only the negatives at hand would count.
        for rank in WORLDS[world][0]:
            torch.testing.assert_close(of_three[rank][world, duplicates][0], Batch.drawn(12).loss(duplicates).detach())

    def test_embeddings_hear_from_all_processes(
        self, of_three: list[dict[Any, Any]], world: str, duplicates: Duplicates
    ) -> None:
        # A title whose gradient does not travel home learns from the images of its own process only.
        members = WORLDS[world][0]
        images, texts, _, _ = Batch.drawn(12).gradients(duplicates)
        shares = [of_three[rank][world, duplicates][1] for rank in members]
        torch.testing.assert_close(torch.cat([share[0] for share in shares]) / len(members), images)
        torch.testing.assert_close(torch.cat([share[1] for share in shares]) / len(members), texts)

    def test_the_mean_of_temperatures_and_biases_gradients(
        self, of_three: list[dict[Any, Any]], world: str, duplicates: Duplicates
    ) -> None:
        _, _, log_scale, bias = Batch.drawn(12).gradients(duplicates)
        shares = [of_three[rank][world, duplicates][1] for rank in WORLDS[world][0]]
        torch.testing.assert_close(torch.stack([share[2] for share in shares]).mean(), log_scale)
        torch.testing.assert_close(torch.stack([share[3] for share in shares]).mean(), bias)
