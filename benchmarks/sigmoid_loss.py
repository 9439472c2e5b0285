"""The sigmoid loss forward and backward, against open_clip's SigLipLoss on the same embeddings.

Prints the ratios of the median times and of the memory taken beyond the embeddings, and the difference of the results.

open_clip is not installed in this environment. Its loss needs only PyTorch, so its files in a separate folder suffice:

    uv pip install --no-deps --target /tmp/peer open_clip_torch
    PYTHONPATH=/tmp/peer python -m benchmarks.sigmoid_loss --rows 4096 --dims 768

On a CPU, memory is the peak of the process (Linux), one process for each side; on a GPU, it is what PyTorch allocated.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from models.finetune.sigmoid_loss import INITIAL_BIAS, INITIAL_LOG_SCALE, sigmoid_loss

_RUNS = 7

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Alternate between the two, so that changes in the machine's speed affect both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    losses: dict[str, Loss] = {"ours": sigmoid_loss, "peer": _peer()}
    leaves = _leaves(given.rows, given.dims, given.device)
    results = {name: _gradients(loss, leaves) for name, loss in losses.items()}
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(_RUNS):
        for name, loss in losses.items():
            times[name].append(_seconds(loss, leaves))
    medians = {name: statistics.median(values) for name, values in times.items()}
    # One process each: a peak never decreases, and memory freed by one would be reused by the other.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(_memory, (name, given.rows, given.dims, given.device)) for name in losses}
    apart = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(results["ours"], results["peer"], strict=True)
    )
    version = importlib.metadata.version("open_clip_torch")
    threads = f", {torch.get_num_threads()} threads" if given.device == "cpu" else ""
    print(
        f"{given.rows:,} pairs of {given.dims} dimensions, forward and backward, median of {_RUNS}, {given.device}{threads}"
    )
    print(f"  in blocks of titles:   {medians['ours'] * 1000:.1f} ms, {memory['ours'] / 2**20:.0f} MiB")
    print(f"  open_clip {version}:       {medians['peer'] * 1000:.1f} ms, {memory['peer'] / 2**20:.0f} MiB")
    print(
        f"  ratio: {medians['ours'] / medians['peer']:.2f} of the time, {memory['ours'] / memory['peer']:.2f} of the memory;"
    )
    print(f"  loss and gradients apart: {apart:.1e} of the largest")


def _peer() -> Loss:
    """open_clip's loss, imported from its file alone: the package requires torchvision and more."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        sys.exit("open_clip is not on the path: the top of this file says how to put it there")
    file = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.SigLipLoss()
    return lambda images, texts, log_scale, bias: loss(images, texts, log_scale.exp(), bias)


def _leaves(rows: int, dims: int, device: str) -> list[Tensor]:
    torch.manual_seed(0)
    numbers = [normalize(torch.randn(rows, dims)), normalize(torch.randn(rows, dims))]
    numbers += [torch.tensor(INITIAL_LOG_SCALE), torch.tensor(INITIAL_BIAS)]
    return [number.to(device).requires_grad_() for number in numbers]


def _gradients(loss: Loss, leaves: list[Tensor]) -> list[Tensor]:
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def _seconds(loss: Loss, leaves: list[Tensor]) -> float:
    start = time.perf_counter()
    gradients = _gradients(loss, leaves)
    # Also synchronises with the GPU.
    assert math.isfinite(float(gradients[-1]))
    return time.perf_counter() - start


def _memory(name: str, rows: int, dims: int, device: str) -> int:
    """The peak memory beyond the embeddings, in bytes, after a warm-up."""
    loss = sigmoid_loss if name == "ours" else _peer()
    _gradients(loss, _leaves(64, dims, device))
    leaves = _leaves(rows, dims, device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _gradients(loss, leaves)
        return torch.cuda.max_memory_allocated() - before
    # Writing 5 resets the peak to the current usage.
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    _gradients(loss, leaves)
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    main()
