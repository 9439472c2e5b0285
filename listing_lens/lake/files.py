"""Files that survive a power failure."""

from __future__ import annotations

import os
from collections.abc import Iterable


def flush_to_disk(paths: Iterable[str]) -> None:
    """Make sure that files and folders are on disk, not just in the operating system's page cache (fsync)."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
