"""Gradient-cached batches: the gradient is that of the whole batch, whatever the pieces, the dropout and the processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from models.errors import LensError
from models.finetune.gradient_cache import backward_in_pieces
from models.finetune.sigmoid_loss import distributed_sigmoid_loss, sigmoid_loss

Rows = tuple[Tensor, Tensor]


class Model(nn.Module):
    """Two towers with dropout, and the loss's own two numbers. Counts the rows that go through it at once."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.images, self.texts = (nn.Sequential(nn.Linear(5, 8), nn.Dropout(dropout), nn.Linear(8, 3)) for _ in "it")
        self.log_scale, self.bias = nn.Parameter(torch.tensor(1.2)), nn.Parameter(torch.tensor(-1.5))
        self.double()
        self.most_rows = 0

    def forward(self, images: Tensor, texts: Tensor) -> Rows:
        if torch.is_grad_enabled():
            self.most_rows = max(self.most_rows, len(images))
        return normalize(self.images(images)), normalize(self.texts(texts))

    def gradients(self) -> dict[str, Tensor]:
        return {name: parameter.grad for name, parameter in self.named_parameters() if parameter.grad is not None}


def drawn(rows: int) -> Rows:
    images, texts = torch.randn(2, rows, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images, texts


def cut(rows: Rows, sizes: Sequence[int]) -> list[Rows]:
    return list(zip(rows[0].split(list(sizes)), rows[1].split(list(sizes)), strict=True))


def in_pieces(model: Model, pieces: list[Rows]) -> Tensor:
    return backward_in_pieces(
        lambda piece: model(*piece),
        pieces,
        lambda images, texts: sigmoid_loss(images, texts, model.log_scale, model.bias),
        [model.log_scale, model.bias],
    )


def as_a_whole(model: Model, pieces: list[Rows]) -> Tensor:
    """Embed all pieces with gradients, each with its own random numbers, and backpropagate once."""
    images, texts = (torch.cat(side) for side in zip(*(model(*piece) for piece in pieces), strict=True))
    loss = sigmoid_loss(images, texts, model.log_scale, model.bias)
    loss.backward()
    return loss.detach()


class TestEqualToTheWholeBatch:
    @settings(max_examples=30)
    @given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), dropout=st.sampled_from([0.0, 0.5]))
    def test_any_pieces(self, sizes: list[int], dropout: float) -> None:
        pieces = cut(drawn(sum(sizes)), sizes)
        cached, whole = Model(dropout), Model(dropout)
        torch.manual_seed(3)
        ours = in_pieces(cached, pieces)
        torch.manual_seed(3)
        torch.testing.assert_close(ours, as_a_whole(whole, pieces))
        torch.testing.assert_close(cached.gradients(), whole.gradients())
        assert cached.most_rows == max(sizes)

    def test_the_next_batch_draws_other_random_numbers(self) -> None:
        pieces, model = cut(drawn(6), [3, 3]), Model(dropout=0.5)
        torch.manual_seed(3)
        as_a_whole(model, pieces)
        expected = torch.rand(4)
        torch.manual_seed(3)
        in_pieces(model, pieces)
        torch.testing.assert_close(torch.rand(4), expected)

    def test_gradients_are_added_to_those_there_are(self) -> None:
        once, twice = Model(), Model()
        in_pieces(once, cut(drawn(6), [4, 2]))
        for _ in range(2):
            in_pieces(twice, cut(drawn(6), [4, 2]))
        torch.testing.assert_close(twice.gradients(), {name: 2 * x for name, x in once.gradients().items()})

    def test_what_is_frozen_stays_without_gradient(self) -> None:
        cached, whole = Model(), Model()
        for model in (cached, whole):
            model.images.requires_grad_(False)
            model.log_scale.requires_grad_(False)
        in_pieces(cached, cut(drawn(6), [4, 2]))
        as_a_whole(whole, [drawn(6)])
        assert cached.gradients().keys() == whole.gradients().keys()
        torch.testing.assert_close(cached.gradients(), whole.gradients())


def test_a_scaled_backward_scales_every_gradient() -> None:
    # As a gradient scaler of float16 training does.
    plain, scaled, pieces = Model(), Model(), cut(drawn(6), [4, 2])
    in_pieces(plain, pieces)
    backward_in_pieces(
        lambda piece: scaled(*piece),
        pieces,
        lambda images, texts: sigmoid_loss(images, texts, scaled.log_scale, scaled.bias),
        [scaled.log_scale, scaled.bias],
        backward=lambda number: (1024 * number).backward(),
    )
    torch.testing.assert_close(scaled.gradients(), {name: 1024 * x for name, x in plain.gradients().items()})


def test_a_batch_without_pieces_is_refused() -> None:
    with pytest.raises(LensError, match="a batch of no pieces"):
        in_pieces(Model(), [])


def run_one_of_two(rank: int, folder: Path) -> None:
    """Leave the gradients of two batches, and how many times each was synchronised."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = Model()
    wrapped = DistributedDataParallel(model)
    synchronised = []

    def count(_, bucket):  # DDP reads annotations, but not as strings.
        synchronised.append(bucket.index())
        return dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda done: done.value()[0])

    wrapped.register_comm_hook(None, count)
    rows = [side[6 * rank : 6 * rank + 6] for side in drawn(12)]
    for _ in range(2):
        loss = backward_in_pieces(
            lambda piece: wrapped(*piece),
            cut((rows[0], rows[1]), [2, 3, 1]),
            lambda images, texts: distributed_sigmoid_loss(images, texts, model.log_scale, model.bias),
            [model.log_scale, model.bias],
            no_sync=wrapped.no_sync,
        )
    torch.save((loss, model.gradients(), len(synchronised)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    # The loss's own parameters are reached outside the wrapped model's forward pass, which is where a second batch
    # would fail with "Expected to have finished reduction in the prior iteration".
    multiprocessing.set_forkserver_preload(["torch._dynamo"])
    torch.multiprocessing.start_processes(run_one_of_two, (tmp_path,), nprocs=2, start_method="forkserver")
    model = Model()
    for _ in range(2):
        whole = as_a_whole(model, [drawn(12)])
    for rank in range(2):
        loss, gradients, synchronised = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(loss, whole)
        torch.testing.assert_close(gradients, model.gradients())
        assert synchronised == 2
