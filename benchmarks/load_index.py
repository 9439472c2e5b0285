"""Loading an index: documents/s and client CPU of the job against Elasticsearch's own helpers; its memory; what readers notice.

    python -m benchmarks.load_index --rows 100000 --memory 10000 100000 300000

On a node of its own. The lake's table holds float16 embeddings of 768 dimensions; the job reads them, projects them to 128 and
writes them. The peers find the same documents in memory, already projected, and write them to indexes of the same settings:
`parallel_bulk` with OrjsonSerializer and NumPy's vectors, the fastest of the client's own ways, and `streaming_bulk` with the
client's default serializer and lists, the usual one. Every load is a process of its own and ends when all is searchable; the
loads alternate, after one of each that is not counted. Start-up, which is the interpreter's and its imports', is told apart.

A reader, also a process of its own, then searches the alias at a steady rate while another index is loaded. Its times count
from when a query was due, so that a query that waits for the one before it is not counted as fast.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from elasticsearch import ApiError, Elasticsearch, OrjsonSerializer, TransportError, helpers
from numpy.typing import NDArray

from benchmarks.clustered import clustered
from benchmarks.node import node
from listing_lens.lake.embeddings import Embeddings, item_schema, with_embedding
from listing_lens.lake.fits import load_projection, save_projection
from listing_lens.lake.records import LISTING_SCHEMA, Listing, listings_of
from listing_lens.lake.tables import scan
from listing_lens.lake.windows import Lake
from listing_lens.search.documents import document_of
from listing_lens.search.index import Index, SearchIndex
from listing_lens.settings import Settings, load_settings
from models.embedder import EmbedderCard
from models.moments import Moments
from models.projection import fit_projection

_DIMS, _KEPT = 768, 128
_CHUNK = 500
_QUERIES = 1000
# name → what is printed of it.
_WAYS = {
    "job": "load_index",
    "writer": "its writer alone",
    "parallel": "parallel_bulk",
    "streaming": "streaming_bulk",
}


def main() -> None:
    """Start a node, fill the tables, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="documents per load")
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[10_000, 100_000, 300_000], help="rows of loads of the job"
    )
    parser.add_argument("--runs", type=int, default=3, help="loads of each kind, and loads beside the reader; 0: none")
    parser.add_argument(
        "--writers", type=int, default=load_settings().index_writers, help="of the job and parallel_bulk"
    )
    parser.add_argument("--rate", type=float, default=20, help="the reader's queries per second")
    parser.add_argument(
        "--idle", type=float, default=30, help="seconds for which it reads from an idle node, each time"
    )
    parser.add_argument("--heap", default="2g", help="the node's")
    parser.add_argument("--java", type=Path, help="a JDK with the vector module; see benchmarks/node.py")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way, index_name = given.one
        print(json.dumps(_measure_one(way, index_name, given.writers)))
        return
    with tempfile.TemporaryDirectory() as folder, node(Path(folder) / "node", given.heap, given.java) as url:
        bench = Bench(Path(folder), url, given.writers)
        if given.runs:
            bench.speed(given.rows, given.runs)
        bench.memory(given.memory)
        if given.runs:
            bench.readers(given.rows, given.runs, given.rate, given.idle)


# ---- what the job needs before it can run ----------------------------------------------------------------------------


def _prepare(search_index: SearchIndex, card: EmbedderCard, build: str) -> Index:
    """An empty index, in the state in which the job is given one."""
    return search_index.create(card, build)


def _serve(search_index: SearchIndex, index: Index) -> None:
    """Let the alias point to an index."""
    search_index.swap(index.name)


def _fill(lake: Lake, rows: int) -> EmbedderCard:
    """Write a table of so many embeddings, as an encoder of its own, and fit a projection. Returns the embedder's card."""
    embeddings = Embeddings(lake, f"encoder-of-{rows}")
    schema = item_schema(_DIMS, "float16")
    if embeddings.items.version() is None:
        embeddings.items.merge(schema, _batches(rows, schema))
    sample = list(clustered(min(rows, 20_000), _DIMS))
    projection = fit_projection(reduce(Moments.merge, map(Moments.of, sample)), _KEPT)
    save_projection(lake, projection)
    return EmbedderCard(
        encoder_source=embeddings.encoder_id,
        encoder_id=embeddings.encoder_id,
        encoder_dims=_DIMS,
        projection_id=projection.projection_id,
        dims=_KEPT,
    )


def _batches(rows: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    first = 0
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for vectors in clustered(rows, _DIMS):
        numbers = range(first, first + len(vectors))
        constant: dict[str, object] = {
            "category": ["Fashion", "Coats"],
            "status": "on_sale",
            "created_at": moment,
            "updated_at": moment,
            "product_id": None,
            "version": int(moment.timestamp()) * 1_000_000 << 11,
            "window": "20260101T000000Z_20260102T000000Z",
            "photo": b"0123456789abcdef",
            "backend": "float32",
        }
        columns = {name: pa.array([value] * len(vectors), schema.field(name).type) for name, value in constant.items()}
        columns["item_id"] = pa.array([f"m{number:011d}" for number in numbers])
        columns["title"] = pa.array(
            [f"A coat of brand {number % 997}, as good as new, size {number % 7}" for number in numbers]
        )
        columns["price"] = pa.array([300 + number * 37 % 90_000 for number in numbers], pa.int64())
        columns["image_uri"] = pa.array([f"gs://photos/m{number:011d}_1.jpg" for number in numbers])
        columns["seller_id"] = pa.array([f"s{number % 50_000:09d}" for number in numbers])
        halves = pa.array(vectors.astype(np.float16).ravel())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(halves, _DIMS)
        yield pa.record_batch([columns[name] for name in schema.names], schema=schema)
        first += len(vectors)


# ---- measurements ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """One load: seconds from its call until all is searchable, seconds of CPU in that time, and MiB at its peak and before.

    `whole_s` is the time of its process, with start-up.
    """

    seconds: float
    cpu_s: float
    peak_mib: float
    level_mib: float
    whole_s: float = 0.0


@dataclass
class Bench:
    """A node, and a lake beside it."""

    folder: Path
    url: str
    writers: int
    _made: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        # A lake and a home of its own, and one alias: whatever else the environment sets holds for the benchmark too.
        self.settings: Settings = load_settings(
            home=self.folder / "home",
            lake=str(self.folder / "lake"),
            elasticsearch_url=self.url,
            elasticsearch_api_key="",
            alias="bench",
            index_writers=self.writers,
        )
        self.lake = Lake(self.settings.lake)
        self.search_index = SearchIndex.connect(self.settings)

    def speed(self, rows: int, runs: int) -> None:
        """Print documents/s and CPU of the job and of its peers, and their ratios."""
        card, few = _fill(self.lake, rows), _fill(self.lake, min(rows, 2000))
        for way in _WAYS:
            self._load(way, few)
        loads: dict[str, list[Load]] = {way: [] for way in _WAYS}
        for _ in range(runs):
            for way in _WAYS:
                loads[way].append(self._load(way, card))
        seconds = {way: statistics.median(load.seconds for load in taken) for way, taken in loads.items()}
        cpu = {way: statistics.median(load.cpu_s for load in taken) / rows * 1e6 for way, taken in loads.items()}
        whole = statistics.median(load.whole_s for load in loads["job"])
        print(f"{rows:,} documents, {_DIMS} dimensions to {_KEPT}, {self.writers} writers, median of {runs}")
        for way, name in _WAYS.items():
            print(
                f"  {name + ':':<18}{rows / seconds[way]:>8,.0f} documents/s, "
                f"{seconds['parallel'] / seconds[way]:>5.2f} of parallel_bulk's speed; "
                f"{cpu[way]:>5.0f} µs of CPU a document, {cpu[way] / cpu['streaming']:.2f} of streaming_bulk's"
            )
        print(
            f"  load_index with start-up: {rows / whole:,.0f} documents/s; "
            f"{seconds['parallel'] / whole:.2f} of parallel_bulk's speed, {seconds['parallel'] / seconds['job']:.2f} without",
            flush=True,
        )

    def memory(self, sizes: list[int]) -> None:
        """Print the job's peak memory by the table's rows."""
        for rows in sizes:
            load = self._load("job", _fill(self.lake, rows))
            print(
                f"  peak memory of the job, {rows:>9,} rows: {load.peak_mib:,.0f} MiB, {load.level_mib:,.0f} before it began",
                flush=True,
            )

    def readers(self, rows: int, runs: int, rate: float, idle_s: float) -> None:
        """Print what a reader of the alias notices of loads. Exits with status 1 if it got errors or no hits."""
        card = _fill(self.lake, rows)
        live = self._new(card)
        self._in_a_process("parallel", live, rows)
        _serve(self.search_index, live)
        queries = next(_projected(self.lake, card))[1][:_QUERIES]
        idle, loading = Answers(), Answers()
        speeds = []
        for _ in range(runs):
            with _reader(self.url, self.search_index.alias, queries, rate, idle):
                time.sleep(idle_s)
            with _reader(self.url, self.search_index.alias, queries, rate, loading):
                speeds.append(rows / self._load("job", card).seconds)
        print(
            f"  a reader of the alias, {rate:.0f} queries/s, {rows:,} documents live, as many loaded beside them, {runs} times"
        )
        for name, answers in (("idle node", idle), ("during loads", loading)):
            p50, p99 = answers.percentiles
            print(
                f"    {name + ':':<14} p50 {p50:.1f} ms, p99 {p99:.1f} ms; {len(answers.ms):,} queries, "
                f"{answers.errors} errors, {answers.empty} empty"
            )
        ratios = [during / alone for during, alone in zip(loading.percentiles, idle.percentiles, strict=True)]
        print(
            f"    ratio p50 {ratios[0]:.2f}, p99 {ratios[1]:.2f}; the loads wrote {statistics.median(speeds):,.0f} documents/s"
        )
        if idle.failed or loading.failed:
            sys.exit("readers got errors or empty answers, of which there must be none")

    def _load(self, way: str, card: EmbedderCard) -> Load:
        """Load a new index in one of the ways, check that all is there, and delete the index."""
        index = self._new(card)
        rows = Embeddings(self.lake, card.encoder_id).count(Embeddings(self.lake, card.encoder_id).require())
        load = self._in_a_process(way, index, rows)
        self.search_index.client.indices.delete(index=index.name)
        return load

    def _new(self, card: EmbedderCard) -> Index:
        return _prepare(self.search_index, card, f"{next(self._made):04d}")

    def _in_a_process(self, way: str, index: Index, rows: int) -> Load:
        command = [
            sys.executable,
            "-m",
            "benchmarks.load_index",
            "--writers",
            str(self.writers),
            "--one",
            way,
            index.name,
        ]
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("LENS_")}
        started = time.perf_counter()
        found = subprocess.run(
            command, check=False, capture_output=True, text=True, env=foreign | self.settings.environment
        )
        whole_s = time.perf_counter() - started
        if found.returncode:
            sys.exit(f"{_WAYS[way]} failed: {found.stderr[-3000:]}")
        written = self.search_index.client.count(index=index.name)["count"]
        assert written == rows, f"{_WAYS[way]} wrote {written} of {rows} documents"
        return Load(**json.loads(found.stdout.splitlines()[-1]), whole_s=whole_s)


# ---- one load, in a process of its own -------------------------------------------------------------------------------


def _measure_one(way: str, index_name: str, writers: int) -> dict[str, float]:
    """Load an index in one of the ways; the fields of `Load`, but for the last."""
    from beam_jobs import load_index

    settings = load_settings()
    search_index = SearchIndex.connect(settings)
    index = search_index.get(index_name)
    known = [] if way == "job" else list(_known(Lake(settings.lake), index.card))
    level, started, cpu = _resident("VmRSS"), time.perf_counter(), _cpu_s()
    if way == "job":
        load_index.main(["--index", index_name])
    elif way == "writer":
        _write(search_index, index, known)
    elif way == "parallel":
        _through(
            helpers.parallel_bulk(
                Elasticsearch(settings.elasticsearch_url, serializer=OrjsonSerializer(), request_timeout=600),
                _actions(index_name, known),
                thread_count=writers,
                chunk_size=_CHUNK,
            )
        )
    else:
        client = Elasticsearch(settings.elasticsearch_url, request_timeout=600)
        _through(helpers.streaming_bulk(client, _actions(index_name, known, lists=True), chunk_size=_CHUNK))
    search_index.client.options(request_timeout=600).indices.refresh(index=index_name)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": _cpu_s() - cpu,
        "peak_mib": _resident("VmHWM"),
        "level_mib": level,
    }


Known = tuple[Listing, NDArray[np.float32]]


def _write(search_index: SearchIndex, index: Index, known: list[Known]) -> None:
    """The project's writer, given what the peers are given."""
    search_index.write_documents(index.name, (document_of(listing, vector) for listing, vector in known))


def _actions(index_name: str, known: list[Known], lists: bool = False) -> Iterator[dict[str, Any]]:
    """The documents as the client's helpers take them; with vectors as arrays, or as lists."""
    for listing, vector in known:
        yield {
            "_index": index_name,
            "_id": listing.item_id,
            "version": listing.version,
            "version_type": "external_gte",
            "item_id": listing.item_id,
            "title": listing.title,
            "category": listing.category,
            "price": listing.price,
            "status": str(listing.status),
            "image_uri": listing.image_uri,
            "created_at": listing.created_at,
            "updated_at": listing.updated_at,
            "vector": vector.tolist() if lists else vector,
        }


def _through(results: Iterable[object]) -> None:
    """Run a helper to its end; it raises if a document is refused."""
    for _ in results:
        pass


def _known(lake: Lake, card: EmbedderCard) -> Iterator[Known]:
    for listings, vectors in _projected(lake, card):
        yield from zip(listings, vectors, strict=True)


def _projected(lake: Lake, card: EmbedderCard) -> Iterator[tuple[list[Listing], NDArray[np.float32]]]:
    """What a table holds, in batches, projected to (n, dims)."""
    projection = load_projection(lake, card.projection_id, card.encoder_id)
    for batch in scan(Embeddings(lake, card.encoder_id).items.open(), [*LISTING_SCHEMA.names, "embedding"]):
        yield list(listings_of(batch)), projection.apply(with_embedding(batch)[1])


def _cpu_s() -> float:
    """CPU time of this process and of the workers that it waited for."""
    return sum(os.times()[:4])


def _resident(what: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at its peak, which unlike getrusage's leaves out what the parent held."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


# ---- the reader ------------------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """Milliseconds of each query from when it was due; how many failed, and how many found nothing."""

    ms: list[float] = field(default_factory=list)
    errors: int = 0
    empty: int = 0

    @property
    def percentiles(self) -> tuple[float, float]:
        """p50 and p99, in milliseconds."""
        p50, p99 = np.percentile(self.ms, [50, 99])
        return float(p50), float(p99)

    @property
    def failed(self) -> int:
        return self.errors + self.empty


@contextlib.contextmanager
def _reader(url: str, alias: str, queries: NDArray[np.float32], rate: float, answers: Answers) -> Iterator[None]:
    """Search the alias at a steady rate, from another process, for as long as the block runs; adds to `answers`."""
    context = multiprocessing.get_context("spawn")
    ready, ended = context.Event(), context.Event()
    ours, theirs = context.Pipe()
    # A daemon: it goes with this process, however that ends.
    process = context.Process(target=_read, args=(url, alias, queries, rate, ready, ended, theirs), daemon=True)
    process.start()
    assert ready.wait(120), "the reader did not start"
    try:
        yield
    finally:
        ended.set()
    got: Answers = ours.recv()
    process.join()
    answers.ms += got.ms
    answers.errors += got.errors
    answers.empty += got.empty


def _read(
    url: str, alias: str, queries: NDArray[np.float32], rate: float, ready: Event, ended: Event, answer: Connection
) -> None:
    client = Elasticsearch(url, serializer=OrjsonSerializer(), max_retries=0, request_timeout=60)
    for query in queries[:50]:
        _search(client, alias, query)
    ready.set()
    answers = Answers()
    began = time.perf_counter()
    for number in count():
        due = began + number / rate
        if ended.wait(max(0.0, due - time.perf_counter())):
            break
        try:
            answers.empty += not _search(client, alias, queries[number % len(queries)])
        except (ApiError, TransportError):
            answers.errors += 1
        answers.ms.append((time.perf_counter() - due) * 1000)
    answer.send(answers)


def _search(client: Elasticsearch, alias: str, query: NDArray[np.float32]) -> int:
    """Search as the search page does. Returns the number of hits."""
    knn = {"field": "vector", "query_vector": query.tolist(), "k": 10, "num_candidates": 100}
    return len(client.search(index=alias, knn=knn, size=10)["hits"]["hits"])


if __name__ == "__main__":
    main()
