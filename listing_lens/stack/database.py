"""The servers' SQLite databases, made and migrated so that a killed migration leaves them as they were."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

# Several processes write to one database; on a loaded machine a transaction can take seconds.
_LOCK_PATIENCE_S = 60


def migrate(database: Path, version: str, run: Callable[[str], None]) -> None:
    """Bring a database to a version, once; nothing else may have it open.

    Args:
        database: the SQLite file; made when there is none.
        version: of the software whose schema it holds.
        run: migrates, or fills, the database at an SQLAlchemy address.
    """
    mark = database.with_suffix(".version")
    if database.exists() and mark.exists() and mark.read_text() == version:
        return
    part = database.with_suffix(".migrating")
    for leftover in part.parent.glob(f"{part.name}*"):
        leftover.unlink()
    if database.exists():
        # Closing the last connection also writes back, and removes, the write-ahead log of a server that was killed.
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(part)) as copy:
            source.backup(copy)
    run(address(part))
    part.replace(database)
    mark.write_text(version)


def address(database: Path) -> str:
    """The database's SQLAlchemy address: a write waits for the one before it, for longer than SQLite's own 5 s."""
    return f"sqlite:///{database}?timeout={_LOCK_PATIENCE_S}"
