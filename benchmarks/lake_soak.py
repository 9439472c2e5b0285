"""Processes that merge overlapping keys into one table, compact it and get killed; the result is checked against a model.

The tests include a short run (`tests/listing_lens/lake/test_soak.py`); this repeats longer ones, and prints any errors.

    python -m benchmarks.lake_soak run --rounds 20

Every writer logs what it is about to merge, and what it has merged. At the end, each key must be there exactly once, at the
largest version of all completed merges; or at a larger one of a killed merge, which may or may not have been committed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from listing_lens.lake.tables import Table

DIMS = 16
SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("embedding", pa.list_(pa.float16(), DIMS)),
    ]
)
NEWER = "source.version > target.version"
_PROGRAM = (sys.executable, "-m", "benchmarks.lake_soak")


@dataclass(frozen=True)
class Soak:
    """The load on a table."""

    writers: int = 4
    merges: int = 12
    keys: int = 3000
    keys_per_merge: int = 400
    compactors: int = 1
    kills: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """The errors found in the table at the end, and how many merges were attempted."""

    merges: int
    killed: int
    duplicates: int
    wrong: list[str]


def rows(ids: list[int], version: int) -> pa.RecordBatch:
    """Rows of a version, which can be told from their embeddings; every seventh key has none."""
    values = np.full((len(ids), DIMS), version % 1000, np.float16)
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(values.ravel()), DIMS, mask=pa.array([n % 7 == 0 for n in ids])
    )
    columns = [pa.array([f"m{n:06d}" for n in ids]), pa.array([version] * len(ids), pa.int64()), embedding]
    return pa.record_batch(columns, schema=SCHEMA)


def write(root: Path, writer: str, merges: int, keys: int, keys_per_merge: int, seed: int) -> None:
    """A writer process: merges random keys with random versions."""
    rng = np.random.default_rng(seed)
    table = Table(f"{root}/soak.lance", "item_id")
    with (root / f"{writer}.jsonl").open("a", buffering=1) as log:
        for _ in range(merges):
            ids = np.sort(rng.choice(keys, keys_per_merge, replace=False)).tolist()
            version = int(rng.integers(1, 10**9))
            log.write(json.dumps({"ids": ids, "version": version, "done": False}) + "\n")
            table.merge(SCHEMA, [rows(ids, version)], newer=NEWER)
            log.write(json.dumps({"ids": ids, "version": version, "done": True}) + "\n")


def compact(root: Path) -> None:
    """A compactor process, which runs until it is terminated."""
    table = Table(f"{root}/soak.lance", "item_id")
    while True:
        if table.exists():
            table.compact(keep=timedelta(minutes=5))


def run(root: Path, soak: Soak) -> Verdict:
    """Run writers and compactors on a table, kill some of them, and check the result."""
    chance = random.Random(soak.seed)

    def start(number: int, life: int) -> subprocess.Popen[bytes]:
        seed = 1000 * soak.seed + 100 * life + number
        numbers = [soak.merges, soak.keys, soak.keys_per_merge, seed]
        return subprocess.Popen([*_PROGRAM, "write", str(root), f"{number}-{life}", *map(str, numbers)])

    writers = [start(number, 0) for number in range(soak.writers)]
    others = [subprocess.Popen([*_PROGRAM, "compact", str(root)]) for _ in range(soak.compactors)]
    killed = 0
    for life in range(1, soak.kills + 1):
        _wait_for_merges(root, soak.writers * life)
        number = chance.randrange(soak.writers)
        if writers[number].poll() is None:
            writers[number].send_signal(signal.SIGKILL)
            killed += 1
        writers[number].wait()
        writers[number] = start(number, life)
    codes = [writer.wait() for writer in writers]
    compactors = [other.poll() for other in others]
    for other in others:
        other.kill()
        other.wait()
    assert not any(codes), f"writers ended with {codes}"
    assert not any(compactors), f"compactors ended with {compactors}"
    return judge(root, killed)


def judge(root: Path, killed: int) -> Verdict:
    """Check a table against the logs of its writers."""
    truth: dict[int, int] = {}
    perhaps: dict[int, set[int]] = {}
    merges = 0
    for entries in map(_entries, sorted(root.glob("*.jsonl"))):
        done = {entry["version"] for entry in entries if entry["done"]}
        merges += len(done)
        for entry in entries:
            for key in entry["ids"]:
                if entry["version"] in done:
                    truth[key] = max(truth.get(key, 0), entry["version"])
                else:
                    perhaps.setdefault(key, set()).add(entry["version"])
    found = Table(f"{root}/soak.lance", "item_id").open().to_table().to_pylist()
    held = {int(row["item_id"][1:]): row for row in found}
    wrong = []
    for key in truth.keys() | held.keys():
        least = truth.get(key, 0)
        allowed = {version for version in perhaps.get(key, ()) if version > least} | ({least} if least else set())
        row = held.get(key)
        if row is None or row["version"] not in allowed:
            wrong.append(f"{key}: {row and row['version']} instead of {sorted(allowed)}")
        elif row["embedding"] != (None if key % 7 == 0 else [float(np.float16(row["version"] % 1000))] * DIMS):
            wrong.append(f"{key}: the embedding of another version")
    return Verdict(merges, killed, len(found) - len(held), wrong)


def _entries(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]  # type: ignore[misc]


def _wait_for_merges(root: Path, merges: int) -> None:
    """Wait until this many merges have begun, so that a kill may hit one at any point."""
    while sum(1 for _ in _lines(root)) < 2 * merges:
        time.sleep(0.01)


def _lines(root: Path) -> Iterator[str]:
    for log in root.glob("*.jsonl"):
        yield from log.read_text().splitlines()


def main() -> None:
    """Run rounds with different seeds, and exit with status 1 if any of them corrupted the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    several = commands.add_parser("run")
    several.add_argument("--rounds", type=int, default=20)
    writer = commands.add_parser("write")
    writer.add_argument("root", type=Path)
    writer.add_argument("writer")
    writer.add_argument("numbers", type=int, nargs=4)
    commands.add_parser("compact").add_argument("root", type=Path)
    given = parser.parse_args()
    if given.command == "write":
        write(given.root, given.writer, *given.numbers)
    elif given.command == "compact":
        compact(given.root)
    else:
        wrong = 0
        for seed in range(given.rounds):
            with tempfile.TemporaryDirectory() as folder:
                verdict = run(Path(folder), Soak(merges=25, seed=seed))
            wrong += bool(verdict.wrong or verdict.duplicates)
            print(
                f"seed {seed}: {verdict.merges} merges, {verdict.killed} writers killed, {verdict.duplicates} duplicates, "
                f"{len(verdict.wrong)} rows wrong {verdict.wrong[:3] or ''}",
                flush=True,
            )
        print(f"{given.rounds - wrong} of {given.rounds} rounds right")
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
