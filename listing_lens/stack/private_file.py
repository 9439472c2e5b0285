"""Files that only their owner reads."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file of mkstemp has mode 0600 from the start.
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
