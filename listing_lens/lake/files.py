"""Files that outlast a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterable


def flush_to_disk(paths: Iterable[str]) -> None:
    """Make sure that files and folders are on the disk, and not only in the operating system's memory."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
