"""GPUs and processes: each process its own, and free again when the process ends. Locks stand for the GPUs here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.encoders.devices import claim_device
from models.errors import LensError

_CLAIM = """
import sys
from pathlib import Path
from models.encoders.devices import claim_one
print(claim_one(["GPU-a", "GPU-b"], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def claimant(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CLAIM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def claimed(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_get_one_each_until_there_is_none(tmp_path: Path) -> None:
    processes = [claimant(tmp_path) for _ in range(3)]
    try:
        assert sorted(claimed(process) for process in processes) == ["0", "1", "None"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    # However they ended, what they held is free.
    after = claimant(tmp_path)
    assert claimed(after) == "0"
    after.communicate("")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu() -> None:
    assert claim_device("auto") == claim_device("cpu") == torch.device("cpu")
    with pytest.raises(LensError, match="LENS_ENCODER_DEVICE is cuda, but torch sees no GPU"):
        claim_device("cuda")
