"""Lance tables with a key: one row per key, one committer at a time.

A merge writes its rows beside the table and adds them in one atomic commit; a reader sees the version that it opened, for as
long as that is kept. Lance's own resolution of concurrent commits is not relied on: commits are serialised
(`listing_lens.lake.locks`), a commit is rejected if the version it was computed on is no longer the latest, and after each
merge its keys are checked to be in the table exactly once. The key is declared (`unenforced-primary-key`) but never indexed:
with an index on it, concurrent merges have been seen to leave duplicates.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from listing_lens.errors import LensError
from listing_lens.lake.files import flush_to_disk
from listing_lens.lake.locks import CloudObjects, HeldLock, file_lock, lease

if TYPE_CHECKING:
    import numpy as np
    from lance import LanceDataset
    from lance.fragment import LanceFragment
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_PRIMARY_KEY = {b"lance-schema:unenforced-primary-key": b"true"}
# Rows per file: 1.6 GB of 768-d float16 embeddings, about a minute of one worker's time.
_ROWS_PER_FILE = 1_000_000
# Rows per batch: 6 MB of 768-d embeddings in float32, which fit the CPU cache.
BATCH_ROWS = 2048
# Keys per batch, about 10 MB: large, since looking keys up builds a hash table of the wanted ones for every batch.
KEY_BATCH_ROWS = 500_000
# Read-ahead of a scan: two batches keep the decoder busy; by default, Lance would buffer 2 GB of a remote file.
_BATCHES_AHEAD = 2
_BYTES_AHEAD = 32 * 2**20
# Lance names a version's manifest by this number minus the version, so that the latest comes first in a listing.
_LAST_NAME = 2**64 - 1
_CHANGED = "_row_last_updated_at_version > {version}"


def keyed(schema: pa.Schema, key: str) -> pa.Schema:
    """A schema with its column `key` declared as the primary key."""
    at = schema.get_field_index(key)
    return schema.set(at, schema.field(at).with_metadata(_PRIMARY_KEY))


@dataclass(frozen=True)
class Merged:
    """The result of a merge: the new version, and the number of rows inserted and updated."""

    version: int
    inserted: int
    updated: int


@dataclass(frozen=True)
class Compacted:
    """The result of a compaction: the number of files before and after, and the bytes of old versions removed."""

    files_before: int
    files_after: int
    bytes_removed: int


@dataclass(frozen=True)
class Table:
    """A table in a folder or under a gs:// prefix. Cheap to construct, safe to pickle; the first merge creates it.

    Attributes:
        path: where it is; ends in ``.lance``.
        key: the column that identifies a row.
    """

    path: str
    key: str

    def exists(self) -> bool:
        return self._find(None) is not None

    def open(self, version: int | None = None) -> LanceDataset:
        """A version of the table; None means the latest.

        Raises:
            LensError: there is no such table, or the version is no longer kept.
        """
        found = self._find(version)
        if found is None:
            of = "" if version is None else f" of version {version}, or it is no longer kept (LENS_LAKE_RETENTION_DAYS)"
            raise LensError(f"there is no table {self.path}{of}: run the job that writes it first, or check LENS_LAKE")
        return found

    def has(self, version: int) -> bool:
        """Whether a version of the table is still kept."""
        return self._find(version) is not None

    def version(self) -> int | None:
        """The latest version; None if there is no table yet."""
        found = self._find(None)
        return None if found is None else int(found.version)

    def rows(self, columns: list[str] | None = None, filter: str | None = None) -> list[dict[str, Any]]:
        """The rows of a small table; none if it does not exist yet."""
        found = self._find(None)
        rows: list[dict[str, Any]] = [] if found is None else found.to_table(columns, filter=filter).to_pylist()
        return rows

    def merge(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch], *, newer: str | None = None) -> Merged:
        """Upsert rows by key, in one commit.

        Memory is bounded by the keys: those of the table, about 110 bytes each, and those of the rows.

        Args:
            schema: the schema of the rows, and of the table if it is new.
            batches: the rows, at most one per key.
            newer: SQL condition over `source` and `target` for replacing an existing row; None means always.

        Raises:
            LensError: the lock cannot be acquired, or a key is not there exactly once after the commit, which is then undone.
        """
        with self._one_committer() as lock:
            found = self._find(None)
            # Not `found or …`: an empty table is falsy.
            table = self._create(schema) if found is None else found
            keys: list[pa.Array] = []

            def counted() -> Iterator[pa.RecordBatch]:
                for batch in batches:
                    keys.append(batch.column(self.key))
                    yield batch

            merge = table.merge_insert(self.key).when_matched_update_all(newer).when_not_matched_insert_all()
            rows = pa.RecordBatchReader.from_batches(schema, counted())
            transaction, counts = merge.execute_uncommitted(rows)
            merged = pa.concat_arrays(keys) if keys else pa.array([], pa.string())
            if not counts["num_inserted_rows"] and not counts["num_updated_rows"]:
                return Merged(int(table.version), 0, 0)
            version = self._commit(lock, table, transaction)
            self._require_once(merged, version, before=int(table.version))
            return Merged(version, counts["num_inserted_rows"], counts["num_updated_rows"])

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the rows with the given keys; keys that are not in the table are ignored."""
        listed = ", ".join("'{}'".format(key.replace("'", "''")) for key in keys)
        if listed:
            self.delete_where(f"{self.key} IN ({listed})")

    def delete_where(self, filter: str) -> int:
        """Delete the rows that match an SQL filter. Returns how many there were."""
        with self._one_committer() as lock:
            table = self._find(None)
            count = 0 if table is None else int(table.count_rows(filter))
            if table is not None and count:
                self._require_latest(lock, table)
                table.delete(filter)
            return count

    def compact(self, keep: timedelta) -> Compacted:
        """Rewrite small files, and files with many replaced rows, as large ones; then drop versions older than `keep`.

        Each large file is its own commit, so that a merge waits for at most one. Compacted rows do not count as changed.

        Raises:
            LensError: a key is in the table more than once.
        """
        from lance.optimize import Compaction

        before = len(self.open().get_fragments())
        while True:
            with self._one_committer() as lock:
                table = self.open()
                tasks = Compaction.plan(table, {"target_rows_per_fragment": _ROWS_PER_FILE}).tasks
                if not tasks:
                    break
                rewritten = tasks[0].execute(table)
                self._require_latest(lock, table)
                Compaction.commit(table, [rewritten])
        with self._one_committer():
            table = self.open()
            removed = table.cleanup_old_versions(older_than=keep, error_if_tagged_old_versions=False)
        self.require_unique()
        return Compacted(before, len(self.open().get_fragments()), int(removed.bytes_removed))

    def require_unique(self) -> None:
        """Raise LensError if any key is in the table more than once. Keeps a 64-bit hash per key in memory."""
        import numpy as np

        every = self.key_hashes()
        if len(np.unique(every)) == len(every):
            return
        values, counts = np.unique(every, return_counts=True)
        suspects = set(values[counts > 1].tolist())
        seen: set[str] = set()
        for batch in scan(self.open(), [self.key], batch_size=KEY_BATCH_ROWS):
            for key in batch.column(self.key).to_pylist():
                if int(hash_keys([key])[0]) not in suspects:
                    continue
                if key in seen:
                    raise LensError(f"table {self.path} holds {self.key} {key!r} twice: restore the version before")
                seen.add(key)

    def key_hashes(self) -> NDArray[np.uint64]:
        """A hash of each key of the latest version, (n,), in no order; none if there is no table."""
        import numpy as np

        found = self._find(None)
        batches = [] if found is None else scan(found, [self.key], batch_size=KEY_BATCH_ROWS)
        hashes = [hash_keys(batch.column(self.key).to_numpy(zero_copy_only=False)) for batch in batches]
        return np.concatenate(hashes) if hashes else np.empty(0, np.uint64)

    @property
    def _in_cloud(self) -> bool:
        return self.path.startswith("gs://")

    def _find(self, version: int | None) -> LanceDataset | None:
        import lance

        try:
            return lance.dataset(self.path, version=version, storage_options=_storage_options(self.path))
        except ValueError as err:
            if "was not found" in str(err):
                return None
            raise

    def _create(self, schema: pa.Schema) -> LanceDataset:
        import lance

        logger.info("table %s is new", self.path)
        return lance.write_dataset(
            keyed(schema, self.key).empty_table(),
            self.path,
            # Keeps track of what changed since a version even when compaction moves rows to other files.
            enable_stable_row_ids=True,
            storage_options=_storage_options(self.path),
        )

    def _one_committer(self) -> AbstractContextManager[HeldLock]:
        if self._in_cloud:
            return lease(CloudObjects(), f"{self.path}.lock")
        return file_lock(f"{self.path}.lock")

    def _commit(self, lock: HeldLock, table: LanceDataset, transaction: Any) -> int:
        import lance

        if not self._in_cloud:
            flush_to_disk(_files_of(self.path, transaction))
        self._require_latest(lock, table)
        version = int(lance.LanceDataset.commit(table, transaction, max_retries=0).version)
        if not self._in_cloud:
            flush_to_disk([f"{self.path}/_versions/{_LAST_NAME - version:020d}.manifest", f"{self.path}/_versions"])
        return version

    def _require_latest(self, lock: HeldLock, table: LanceDataset) -> None:
        """Raise LensError if another process has committed without the lock since the table was opened."""
        lock.confirm()
        if table.latest_version != table.version:
            raise LensError(
                f"table {self.path} moved from version {table.version} to {table.latest_version} during a commit: "
                "let nothing else write it, and run the job again"
            )

    def _require_once(self, keys: pa.Array, version: int, before: int) -> None:
        """Undo the commit and raise LensError unless each key is in the table exactly once."""
        table = self.open(version)
        there = sum(
            pc.sum(pc.is_in(batch.column(self.key), value_set=keys)).as_py() or 0
            for batch in scan(table, [self.key], batch_size=KEY_BATCH_ROWS)
        )
        if there != len(keys):
            self.open(before).restore()
            raise LensError(
                f"table {self.path}: {len(keys)} keys were merged, but {there} rows have them; the commit is undone: "
                "run the job again"
            )


def scan(
    source: LanceDataset | LanceFragment,
    columns: list[str],
    *,
    filter: str | None = None,
    batch_size: int = BATCH_ROWS,
    offset: int | None = None,
    limit: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream columns of a table, or of one of its fragments; memory is bounded by a few batches.

    Args:
        source: a version of the table, or a fragment of it.
        columns: names of the columns to read.
        filter: an SQL filter for the rows.
        batch_size: maximum rows per batch.
        offset, limit: which of the rows that match to read; None is all.
    """
    yield from source.scanner(
        columns=columns,
        offset=offset,
        limit=limit,
        filter=filter,
        batch_size=batch_size,
        batch_readahead=_BATCHES_AHEAD,
        io_buffer_size=_BYTES_AHEAD,
    ).to_batches()


def hash_keys(keys: Sequence[str] | NDArray[np.object_]) -> NDArray[np.uint64]:
    """A 64-bit hash of each key, (n,): of a billion keys, two are expected to share theirs with a chance of 3 %."""
    import numpy as np
    import pandas as pd

    hashes: NDArray[np.uint64] = pd.util.hash_array(np.asarray(keys, object), categorize=False)
    return hashes


# A fragment of a table, at a version that has it.
Place = tuple[int, int]


def places_of(table: Table, version: int | None) -> list[Place]:
    """(version, fragment) of each fragment of a version; None, of no table yet, has none."""
    if version is None:
        return []
    return [(version, fragment.fragment_id) for fragment in table.open(version).get_fragments()]


def places_between(table: Table, first: int, last: int) -> list[Place]:
    """(version, fragment) of each fragment that the table had in any of its versions from the first to the last.

    Each fragment is named at the first version that has it, before rows of it were replaced: so all rows are found that the
    table held at any time in between, those of an item in all its versions.

    Raises:
        LensError: one of the two is no longer kept.
    """
    found: dict[int, Place] = {}
    kept = [entry["version"] for entry in table.open(last).versions()]
    for version in sorted({first, last, *(number for number in kept if first < number < last)}):
        for place in places_of(table, version):
            found.setdefault(place[1], place)
    return sorted(found.values())


def version_at(table: Table, moment: datetime) -> int:
    """The version that was the latest at a time; the oldest that is kept, when that is younger.

    Raises:
        LensError: there is no table.
    """
    committed: dict[int, datetime] = {entry["version"]: entry["timestamp"] for entry in table.open().versions()}  # type: ignore[misc]
    before = [version for version, at in committed.items() if at.astimezone(UTC) <= moment]
    return max(before, default=min(committed))


def changed_since(version: int) -> str:
    """An SQL filter for the rows inserted or replaced after a version; compaction does not count."""
    return _CHANGED.format(version=version)


def _files_of(path: str, transaction: Any) -> list[str]:
    """The files that a merge has written, and the folders that contain them."""
    operation = transaction.operation
    data = [file.path for fragment in operation.new_fragments for file in fragment.files]
    changed = [fragment for fragment in operation.updated_fragments if fragment.deletion_file]
    files = [f"data/{name}" for name in data] + [fragment.deletion_file.path(fragment.id) for fragment in changed]
    return [f"{path}/{name}" for name in [*files, "data", *(["_deletions"] if changed else [])]]


def _storage_options(path: str) -> dict[str, str] | None:
    """Lance's options for a Cloud Storage emulator; for the real one, it uses the environment's credentials."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if not path.startswith("gs://") or not emulator:
        return None
    nobody = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    account = {"gcs_base_url": emulator, "disable_oauth": True, **nobody}
    return {"google_service_account_key": json.dumps(account), "allow_http": "true"}
