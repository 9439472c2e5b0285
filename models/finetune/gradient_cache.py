"""Batches larger than memory allows, with the gradient of the whole batch (Gao et al. 2021, arXiv:2101.06983).

A contrastive loss needs the embeddings of the whole batch, but an embedding only its own row. So the batch is embedded
piece by piece without keeping what a backward pass needs; the loss gives the gradient of every embedding; and each
piece is embedded again, now to carry its part of that gradient on to the weights. Memory is bounded by a piece, and the
price is one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from models.errors import LensError

Batch = TypeVar("Batch")


def backward_in_pieces(
    embed: Callable[[Batch], tuple[Tensor, Tensor]],
    pieces: Sequence[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    loss_parameters: Sequence[Tensor] = (),
    backward: Callable[[Tensor], object] = Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Add the gradient of the loss of a whole batch to the parameters' `grad`, piece by piece.

    Random numbers (dropout) are the same both times that a piece is embedded.

    Under DistributedDataParallel, `embed` calls the wrapped model once per piece, for both sides together, since every
    synchronised backward pass must belong to one forward pass and reach every parameter; and every process has equally
    many pieces.

    Args:
        embed: a piece of m rows to its image and text embeddings, (m, d) each.
        pieces: of the batch, at least one, in any sizes.
        loss: the embeddings of the whole batch, (n, d) each in the pieces' order, to one number.
        loss_parameters: what `loss` itself learns, such as temperature and bias; frozen ones are left alone.
        backward: how a number is backpropagated; with Accelerate, its `backward`. Must be linear in the number.
        no_sync: a context in which gradients are added up here only; all pieces but the last are embedded and
            backpropagated in one. With Accelerate, `lambda: accelerator.no_sync(model)`.

    Returns:
        The loss of the whole batch, detached.

    Raises:
        LensError: there are no pieces.
    """
    if not pieces:
        raise LensError("a batch of no pieces has no loss: give it at least one")
    randoms, embeddings = [], []
    with torch.no_grad():
        for piece in pieces:
            randoms.append(_random_state())
            embeddings.append(embed(piece))
    images, texts = (torch.cat(side).requires_grad_() for side in zip(*embeddings, strict=True))
    learned = [parameter for parameter in loss_parameters if parameter.requires_grad]
    value = loss(images, texts)
    # Asked for rather than backpropagated: that would set off the synchronisation of the loss's own parameters.
    gradients = torch.autograd.grad(value, [images, texts, *learned])
    sizes = [len(side) for side, _ in embeddings]
    parts = list(zip(*(gradient.split(sizes) for gradient in gradients[:2]), strict=True))
    last = len(pieces) - 1
    for at, piece in enumerate(pieces):
        with nullcontext() if at == last else no_sync():
            _set_random_state(randoms[at])
            carried = list(zip(embed(piece), parts[at], strict=True))
            if at == last:
                carried += zip(learned, gradients[2:], strict=True)
            # The number whose gradient with respect to each embedding is the one that the loss gave it.
            backward(torch.stack([(side * gradient).sum() for side, gradient in carried]).sum())
    return value.detach()


def _random_devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, _random_devices())]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for device, its in zip(_random_devices(), state[1:], strict=True):
        torch.cuda.set_rng_state(its, device)
