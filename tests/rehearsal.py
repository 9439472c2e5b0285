"""A marketplace of random vectors in several spaces, readers who search all the time, and a node that can be stopped.

For tests of what an index survives: nothing is embedded, rows come into the encoders' tables as an embedding job would put them.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np
from elasticsearch import helpers
from numpy.typing import NDArray
from tiny import FIRST, items_of, put_items

from listing_lens.errors import LensError
from listing_lens.lake.fits import load_projection, save_projection
from listing_lens.lake.records import Listing
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake
from listing_lens.search.builds import State
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.verification import Check, Verification
from listing_lens.settings import Settings, load_settings
from models.embedder import EmbedderCard
from models.moments import Moments
from models.projection import fit_projection

ENCODER_DIMS, DIMS = 12, 6
_PATIENCE_S = 300.0
# The readers leave the processors to what is tested.
_PAUSE_S = 0.02


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition. Raises AssertionError when it does not come true."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.02)


def embedding(encoder_id: str, listing: Listing) -> NDArray[np.float32]:
    """What an encoder would make of a listing's photo: a random unit vector, the same for the same photo."""
    seed = int.from_bytes(blake2b(f"{encoder_id}/{listing.image_uri}".encode(), digest_size=8).digest())
    vector = np.random.default_rng(seed).standard_normal(ENCODER_DIMS).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


# An item in an index or a model: its version, its status, and its vector if it can be found.
Row = tuple[int, str, NDArray[np.float32] | None]


@dataclass(frozen=True)
class Market:
    """A lake whose items are embedded by some encoders, each with spaces of its own."""

    lake: Lake

    def space(self, encoder_id: str, seed: int = 0) -> EmbedderCard:
        """Fit a projection; another seed gives another space, of the same dimensions."""
        rows = np.random.default_rng(seed).standard_normal((60, ENCODER_DIMS)).astype(np.float32)
        projection = fit_projection(Moments.of(rows), DIMS, encoder_id=encoder_id)
        save_projection(self.lake, projection)
        return EmbedderCard(
            encoder_source=encoder_id,
            encoder_id=encoder_id,
            encoder_dims=ENCODER_DIMS,
            projection_id=projection.projection_id,
            dims=DIMS,
        )

    def put(self, encoder_id: str, listings: Sequence[Listing], window: Window = FIRST) -> int:
        """Bring a window's listings into an encoder's table. Returns the table's version."""
        vectors = [embedding(encoder_id, one) if one.searchable else None for one in listings]
        # A table's dimensions come from its first rows.
        assert any(vector is not None for vector in vectors), "one listing must be on sale"
        return put_items(self.lake, encoder_id, listings, vectors, window)

    def vector(self, card: EmbedderCard, listing: Listing) -> NDArray[np.float32]:
        """A listing's vector (dims,) in a space."""
        projection = load_projection(self.lake, card.projection_id, card.encoder_id)
        return np.array(projection.apply(embedding(card.encoder_id, listing)[None])[0])

    def rows(self, card: EmbedderCard) -> dict[str, Row]:
        """What an index of a space must hold, as of now."""
        projection = load_projection(self.lake, card.projection_id, card.encoder_id)
        return {
            item_id: (
                row["version"],
                row["status"],
                None if row["embedding"] is None else projection.apply(row["embedding"][None])[0],
            )
            for item_id, row in items_of(self.lake, card.encoder_id).items()
        }


def held(search_index: SearchIndex, name: str) -> dict[str, Row]:
    """All that an index holds."""
    client = search_index.client
    client.indices.refresh(index=name)
    query: dict[str, Any] = {"query": {"match_all": {}}, "version": True}
    hits = helpers.scan(client, index=name, query=query, size=5000, source_exclude_vectors=False)
    found = {}
    for hit in hits:
        vector = hit["_source"].get("vector")
        found[hit["_id"]] = (
            hit["_version"],
            hit["_source"]["status"],
            None if vector is None else np.array(vector, np.float32),
        )
    return found


def require_same(found: Mapping[str, Row], expected: Mapping[str, Row]) -> None:
    """Raise AssertionError unless ids, versions, statuses and vectors are equal."""
    versions = {item: row[:2] for item, row in found.items()}
    assert versions == {item: row[:2] for item, row in expected.items()}
    for item, (_, _, vector) in expected.items():
        mine = found[item][2]
        assert (mine is None) == (vector is None), item
        if mine is not None and vector is not None:
            np.testing.assert_allclose(mine, vector, atol=1e-5, err_msg=item)


def passed(index: Index | str, *, space: str = "", ok: bool = True) -> Verification:
    """A verification as the job would record it."""
    moment = datetime.now(UTC)
    check = Check(name="reconciled", passed=ok, says="It was compared by hand.", measured=1, threshold=1, examples=())
    return Verification(
        index=index if isinstance(index, str) else index.name,
        space=space,
        table_version=1,
        began_at=moment,
        ended_at=moment,
        checks=(check,),
        forced=(),
    )


@dataclass
class Reader:
    """Searches the live index for one listing all the time, as the search by photo does, and writes down what is wrong.

    Attributes:
        vector: the query in a space.
        item_id: what must be found, with a cosine of 1: a query of another space would not give that.
    """

    settings: Settings
    vector: Callable[[EmbedderCard], NDArray[np.float32]]
    item_id: str
    complaints: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    # While it is set, errors are what is to be expected.
    away: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Reader:
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        self.has_seen_more()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        if err is None:
            self.has_seen_more()
        self._ended.set()
        assert self._thread
        self._thread.join()
        if err is None:
            assert self.complaints == []

    def has_seen_more(self) -> None:
        """Wait for another answer."""
        before = len(self.seen)
        wait_for(lambda: len(self.seen) > before or self.complaints, "an answer")

    def _read(self) -> None:
        search_index, vectors = SearchIndex.connect(self.settings), dict[str, NDArray[np.float32]]()
        while not self._ended.is_set() and len(self.complaints) < 5:
            was_away = self.away.is_set()
            try:
                index = search_index.require_live()
                if index.card.space not in vectors:
                    vectors[index.card.space] = self.vector(index.card)
                hits = search_index.search(index, vectors[index.card.space], 1)
            except LensError as err:
                if not was_away and not self.away.is_set():
                    self.complaints.append(str(err))
                self._ended.wait(_PAUSE_S)
                continue
            if [hit.item_id for hit in hits] != [self.item_id] or abs(hits[0].score - 1) > 1e-4:
                self.complaints.append(f"{index.name} gave {hits}")
            self.seen.append(index.name)
            self._ended.wait(_PAUSE_S)
        search_index.client.close()


@dataclass
class Node:
    """A node of one's own, on a port that it keeps."""

    home: Path
    port: int
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until its indexes can be read."""
        command = [sys.executable, "-m", "listing_lens.stack.elasticsearch_node"]
        places = ["--home", str(self.home), "--cache", str(load_settings().cache), "--port", str(self.port)]
        self.home.mkdir(exist_ok=True)
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, *places, "--heap", "512m"], stdout=log, stderr=log)
        wait_for(self._is_up, "the node")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, and wait until it has ended. Nothing to do when it has."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def _is_up(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"the node has ended: see {self.home}/log"
        with suppress(httpx.HTTPError, KeyError):
            health = httpx.get(f"{self.url}/_cluster/health", timeout=5).json()
            return health["status"] in ("yellow", "green") and not health["initializing_shards"]
        return False


def states(builds: Any) -> dict[str, State]:
    """Every build's state by its index."""
    return {build.index: build.state for build in builds.all()}
