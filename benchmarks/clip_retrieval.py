"""The embedding job against clip-retrieval's inference, alternating, on the same images, with models of the same size.

    python -m benchmarks.clip_retrieval

On the first run, clip-retrieval is installed into its own virtual environment, in the user's cache. Both read the same folder
of 1440×1080 JPEGs and embed with SigLIP base/16-256 with random weights, with the same batch size and number of threads.
Models are loaded, and the job's backends are made, before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
import torch
from PIL import Image

from benchmarks.embedding import job, land, pinned, save_siglip_base, write_photos
from listing_lens.lake.windows import Lake
from models.encoders.runtime import Backend

_PEER = "clip-retrieval==2.45.0"
_WORKER = Path(__file__).parent / "peers" / "clip_retrieval_worker.py"


def main() -> None:
    """Alternate between the two, so that changes in the machine's speed affect both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    python = peer_python()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = write_photos(folder / "photos", given.images)
        source = str(save_siglip_base(folder / "siglip-base-patch16-256"))
        os.environ |= {
            "LENS_LAKE": str(folder / "lake"),
            "LENS_HOME": str(folder / "home"),
            "LENS_CACHE": str(folder / "cache"),
            "LENS_ENCODER": source,
            "LENS_ENCODER_BATCH_SIZE": str(given.batch),
            "LENS_ENCODER_DEVICE": "cpu",
        }
        land(Lake(str(folder / "lake")), photos)
        decoded = [Image.open(photo).convert("RGB") for photo in photos]
        ours = {
            f"the job in {backend}": job(pinned(source, backend, decoded))
            for backend in (Backend.FLOAT32, Backend.OPENVINO, Backend.OPENVINO_INT8)
        }
        threads = torch.get_num_threads()
        command = [str(python), str(_WORKER), str(folder / "photos"), str(given.batch), str(threads)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            versions = _answer(process, "versions: ")
            times: dict[str, list[float]] = {name: [] for name in (versions, *ours)}
            for turn in range(given.runs + 1):
                taken = {versions: _peer_seconds(process)} | {name: run() for name, run in ours.items()}
                # The first round loads and warms up.
                for name, seconds in taken.items() if turn else ():
                    times[name].append(seconds)
            assert process.stdin is not None
            process.stdin.close()
    speeds = {name: given.images / statistics.median(values) for name, values in times.items()}
    print(f"{given.images} JPEGs, batch {given.batch}, {threads} threads, median of {given.runs}")
    for name, speed in speeds.items():
        print(f"  {name}: {speed:.2f} images/s, ratio {speed / speeds[versions]:.2f}")


def peer_python() -> Path:
    """The interpreter of the virtual environment with clip-retrieval, which is created if necessary."""
    folder = platformdirs.user_cache_path("listing-lens") / "peers" / _PEER.replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        # It imports pkg_resources, which current setuptools no longer includes.
        packages = [_PEER, "setuptools<81"]
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), *packages], check=True)
        (folder / "ready").touch()
    return python


def _peer_seconds(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    process.stdin.write("again\n")
    process.stdin.flush()
    return float(_answer(process, "seconds: "))


def _answer(process: subprocess.Popen[str], beginning: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return line.removeprefix(beginning).strip()
    raise RuntimeError("clip-retrieval's worker ended: its message is above")


if __name__ == "__main__":
    main()
