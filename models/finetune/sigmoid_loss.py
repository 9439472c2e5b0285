"""The pairwise sigmoid loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, Algorithm 1), alone or over several processes.

Every image is paired with every title of the global batch, and each pair is a question of its own: do these two belong
together? The answer's logit is `exp(log_scale) · image·text + bias`, and the loss is the sum of all pairs' log losses
divided by the number of images (not of pairs).

The loss is one number, so its gradient is worked out along with it, a block of titles at a time: no matrix of all pairs is
ever held, and nothing is computed twice. With several processes the images stay where they are and the titles travel
round a ring, each with the gradient that it has gathered so far, until both are home again. So a process holds one
block of titles whatever the number of processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.errors import LensError

INITIAL_LOG_SCALE = math.log(10)
"""Where the learned log-temperature starts, as published. Models that transformers builds from a config start at 0."""

INITIAL_BIAS = -10.0
"""Where the learned bias starts, as published: nearly all pairs do not belong together."""


def initial_bias(batch_size: int) -> float:
    """Where the bias of a model that was never trained starts.

    The published start is the logarithm of the share of pairs that belong together in a batch of 32,768. In a batch of
    hundreds, all pairs would attract at first, until every embedding is the same.
    """
    return max(INITIAL_BIAS, -math.log(batch_size))


Duplicates = Literal["negative", "positive", "mask"]
"""How an image and another row's title are treated when both rows have the same group: as a pair that does not belong
together, as one that does, or not at all."""

# The logits of 4,096 images against so many titles are 16 MB, and larger blocks are hardly faster.
_CHUNK = 1024

# The rows and columns of entries of a matrix; a block of titles, with their groups and their gradient so far.
_Where = tuple[Tensor, ...]
_Block = tuple[Tensor, Tensor, Tensor]


def sigmoid_loss(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    groups: Tensor | None = None,
    duplicates: Duplicates = "negative",
    chunk: int = _CHUNK,
) -> Tensor:
    """The loss of a batch that lies in one process, differentiable once.

    Computed in float32 (float64 for float64 embeddings), also under autocast.

    Args:
        images: (n, d) embeddings of unit length, any float dtype.
        texts: (n, d) embeddings of unit length; row i belongs to image i.
        log_scale: the logarithm of the temperature, one number.
        bias: one number, added to every logit.
        groups: (n,) int64; rows of one group show or name the same thing. Needed unless duplicates are "negative".
        duplicates: how an image and another row's title of the same group are treated.
        chunk: how many titles are compared at a time; the memory taken is about 3 · n · chunk numbers beside the gradients.

    Returns:
        One number, without dimensions.

    Raises:
        LensError: shapes that do not belong together, an empty batch, missing groups or an unknown choice.
    """
    _check(images, texts, log_scale, bias, groups, duplicates, chunk)
    return _apply(images, texts, log_scale, bias, groups, duplicates, chunk, _Ring((len(images),)))


def distributed_sigmoid_loss(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    groups: Tensor | None = None,
    duplicates: Duplicates = "negative",
    chunk: int = _CHUNK,
    processes: dist.ProcessGroup | None = None,
) -> Tensor:
    """The loss of a global batch of which every process holds some rows. All processes must call it together.

    Its value is the loss of the global batch, in every process. Its gradient is this process's share, scaled so that
    the *mean* over the processes, which is what DistributedDataParallel takes, is the gradient of the global batch.
    A title's gradient holds what the images of all processes say about it. The processes may hold unequally many rows;
    what is backpropagated must be scaled alike in all of them.

    Args:
        processes: those that share the batch; all of the default group if None.

    The other arguments are those of `sigmoid_loss`, with this process's n rows.

    Raises:
        LensError: as `sigmoid_loss`, or torch.distributed is not initialised.
    """
    if not dist.is_initialized():
        raise LensError("the loss over several processes needs torch.distributed: initialise it, or call sigmoid_loss")
    _check(images, texts, log_scale, bias, groups, duplicates, chunk)
    ring = _Ring.among(processes, len(images), images.device)
    return _apply(images, texts, log_scale, bias, groups, duplicates, chunk, ring)


def _apply(*arguments: object) -> Tensor:
    loss: Tensor = _SigmoidLoss.apply(*arguments)
    return loss


class _SigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        log_scale: Tensor,
        bias: Tensor,
        groups: Tensor | None,
        duplicates: Duplicates,
        chunk: int,
        ring: _Ring,
    ) -> Tensor:
        inputs = (images, texts, log_scale, bias)
        # A logit is a similarity times a hundred or so: bfloat16 would leave it two digits.
        with torch.autocast(images.device.type, enabled=False):
            dtype = torch.promote_types(images.dtype, torch.float32)
            images, texts = images.to(dtype), texts.to(dtype)
            scale, bias = log_scale.to(dtype).exp().reshape(()), bias.to(dtype).reshape(())
            groups = images.new_zeros(len(images), dtype=torch.int64) if groups is None else groups
            pairs = _Pairs(images * scale, bias, groups, duplicates, chunk)
            text_gradient = torch.zeros_like(texts)
            for hop in range(ring.size):
                pairs.add(texts, groups, text_gradient, own=hop == 0)
                # After as many hops as there are processes, the titles are home, and so are their gradients.
                texts, groups, text_gradient = ring.pass_on((texts, groups, text_gradient), hop)
            share = ring.size / ring.rows
            image_gradient = pairs.image_gradient.mul_(scale * share)
            text_gradient = text_gradient.mul_(share)
            # The logits less the bias are proportional to the scale and to the images alike, hence this gradient.
            gradients = (image_gradient, text_gradient, (images * image_gradient).sum(), pairs.bias_gradient * share)
            loss = ring.sum(pairs.loss) / ring.rows
        ctx.save_for_backward(*(g.to(x.dtype).reshape(x.shape) for g, x in zip(gradients, inputs, strict=True)))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*(gradient.to(saved.dtype) * saved for saved in ctx.saved_tensors), None, None, None, None)


class _Pairs:
    """Sums over pairs of the images here, times the scale (n, d), with blocks of titles: the loss and its gradients."""

    def __init__(self, images: Tensor, bias: Tensor, groups: Tensor, duplicates: Duplicates, chunk: int) -> None:
        self.images, self.bias, self.groups, self.duplicates, self.chunk = images, bias, groups, duplicates, chunk
        self.loss = images.new_zeros(())
        self.bias_gradient = images.new_zeros(())
        self.image_gradient = torch.zeros_like(images)

    def add(self, texts: Tensor, groups: Tensor, text_gradient: Tensor, own: bool) -> None:
        """Add all pairs with the titles (m, d), to `text_gradient` (m, d) too; `own` if title i belongs to image i."""
        for start in range(0, len(texts), self.chunk):
            some = slice(start, start + self.chunk)
            together, unasked = self._answers(groups[some], start if own else None)
            # One matrix in turn: the logits, against the right answer, and the gradient with respect to the logits.
            matrix = torch.addmm(self.bias, self.images, texts[some].T)
            matrix[together] *= -1
            matrix[unasked] = -torch.inf
            self.loss += functional.softplus(matrix).sum()
            matrix.sigmoid_()
            matrix[together] *= -1
            self.bias_gradient += matrix.sum()
            self.image_gradient.addmm_(matrix, texts[some])
            text_gradient[some].addmm_(matrix.T, self.images)

    def _answers(self, groups: Tensor, first: int | None) -> tuple[_Where, _Where]:
        """Where in the matrix images × titles pairs belong together, and where they are not asked about.

        Args:
            groups: (m,) of the titles.
            first: the image that the first title belongs to, the second to the next; None if to none of these images.
        """
        columns = torch.arange(0 if first is None else len(groups), device=groups.device)
        own = (columns + (first or 0), columns)
        nowhere = (columns[:0], columns[:0])
        if self.duplicates == "negative":
            return own, nowhere
        same = self.groups[:, None] == groups
        if self.duplicates == "positive":
            return same.nonzero(as_tuple=True), nowhere
        same[own] = False
        return own, same.nonzero(as_tuple=True)


@dataclass(frozen=True)
class _Ring:
    """The processes that share a batch, each with a left neighbour and a right one.

    Attributes:
        held: how many rows each process holds, by its rank among them.
        rank: of this process among them.
        processes: None for the default group.
    """

    held: tuple[int, ...]
    rank: int = 0
    processes: dist.ProcessGroup | None = None

    @classmethod
    def among(cls, processes: dist.ProcessGroup | None, rows: int, device: torch.device) -> _Ring:
        held = torch.zeros(dist.get_world_size(processes), dtype=torch.int64, device=device)
        held[dist.get_rank(processes)] = rows
        dist.all_reduce(held, group=processes)
        return cls(tuple(held.tolist()), dist.get_rank(processes), processes)

    @property
    def size(self) -> int:
        return len(self.held)

    @property
    def rows(self) -> int:
        """Of the global batch."""
        return sum(self.held)

    def sum(self, number: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(number, group=self.processes)
        return number

    def pass_on(self, block: _Block, hop: int) -> _Block:
        """Give what is held in this hop to the right neighbour, and take what the left one held."""
        if self.size == 1:
            return block
        rows = self.held[(self.rank - hop - 1) % self.size]
        texts, groups, gradient = (x.new_empty((rows, *x.shape[1:])) for x in block)
        received = (texts, groups, gradient)
        left, right = (self.rank - 1) % self.size, (self.rank + 1) % self.size
        # Tags tell the tensors apart where the left neighbour is also the right one.
        exchanges = [
            dist.P2POp(step, x.contiguous(), group=self.processes, tag=tag, group_peer=neighbour)
            for step, neighbour, tensors in ((dist.isend, right, block), (dist.irecv, left, received))
            for tag, x in enumerate(tensors)
        ]
        for request in dist.batch_isend_irecv(exchanges):
            request.wait()
        return received


def _check(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    groups: Tensor | None,
    duplicates: Duplicates,
    chunk: int,
) -> None:
    if images.ndim != 2 or images.shape != texts.shape or not len(images):
        raise LensError(
            f"the loss compares as many images as titles, at least one, of equal dimensions; "
            f"it was given {tuple(images.shape)} and {tuple(texts.shape)}: give it a matrix of each"
        )
    if log_scale.numel() != 1 or bias.numel() != 1:
        raise LensError(
            f"the loss takes one temperature and one bias, not {log_scale.numel()} and {bias.numel()} numbers"
        )
    if duplicates not in get_args(Duplicates):
        raise LensError(f"duplicates are {', '.join(get_args(Duplicates))}, not {duplicates!r}: choose one of these")
    if duplicates != "negative" and (groups is None or groups.shape != images.shape[:1]):
        given = "none" if groups is None else f"those of shape {tuple(groups.shape)}"
        raise LensError(
            f"duplicates cannot be {duplicates} without a group for each of the {len(images)} rows; {given} were given"
        )
    if chunk < 1:
        raise LensError(f"cannot compare {chunk} titles at a time: compare at least one")
