"""A migration may be killed at any point: the database must then be the old one, whole, and the next start goes on."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from listing_lens.stack.database import migrate


def add_row(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS t (n INTEGER)"))
        connection.execute(text("INSERT INTO t SELECT count(*) FROM t"))
    engine.dispose()


def rows(database: Path) -> list[int]:
    with closing(sqlite3.connect(database)) as connection:
        return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]


def test_it_is_made_then_left_alone_until_the_version_changes(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    migrate(database, "1", add_row)
    migrate(database, "1", add_row)
    assert rows(database) == [0]
    migrate(database, "2", add_row)
    assert rows(database) == [0, 1]


def test_a_migration_that_dies_leaves_the_old_database_and_is_done_again(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    migrate(database, "1", add_row)

    def die(url: str) -> None:
        add_row(url)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(database, "2", die)
    assert rows(database) == [0]
    migrate(database, "2", add_row)
    assert rows(database) == [0, 1]


def test_what_a_killed_server_left_in_the_write_ahead_log_is_migrated_too(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    migrate(database, "1", add_row)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO t VALUES (7)")
        connection.commit()
        # As kill -9 leaves them: the files are copied while the connection is open.
        killed = tmp_path / "killed"
        killed.mkdir()
        for file in tmp_path.glob("a.*"):
            (killed / file.name).write_bytes(file.read_bytes())
    assert (killed / "a.db-wal").exists()
    migrate(killed / "a.db", "2", lambda url: None)
    assert rows(killed / "a.db") == [0, 7]
