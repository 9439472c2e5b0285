"""What a live index survives, on a real node: killed loaders, a node that goes away, lost answers, two engineers at once.

Readers search the alias all the time, and are never given an error, an empty answer or a result of another space.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from faulty_proxy import Exchange, Fault, FaultyProxy, Response, drop, refuse_items
from rehearsal import Market, Node, Reader, held, passed, require_same, states, wait_for
from tiny import FIRST, SECOND, listing, remove_indexes

from beam_jobs import load_index
from beam_jobs.launcher import refusal
from listing_lens.errors import LensError
from listing_lens.lake.records import Listing, Status
from listing_lens.lake.windows import Lake
from listing_lens.search import lifecycle
from listing_lens.search.builds import Build, Builds, State
from listing_lens.search.index import SearchIndex
from listing_lens.search.loads import Load, Loads, Part
from listing_lens.settings import load_settings
from listing_lens.stack.ports import choose_port
from models.embedder import EmbedderCard

_ONE, _TWO = "encoder-one", "encoder-two"
_ROWS, _PART_ROWS = 2000, 100
_BULK, _SWAP = r"[^/]/_bulk$", r"/_aliases$"
# Never changed by a test: what the readers look for.
_LASTING = listing("lasting")


@dataclass(frozen=True)
class Stage:
    """A marketplace in two spaces, and an alias of a test's own."""

    market: Market
    one: EmbedderCard
    two: EmbedderCard

    @property
    def builds(self) -> Builds:
        """As a step sees them: through the settings of the moment."""
        return lifecycle.connect_builds(load_settings(), patience_s=60)

    @property
    def search_index(self) -> SearchIndex:
        return self.builds.search_index

    def put(self, *listings: Listing, encoders: tuple[str, ...] = (_ONE, _TWO)) -> None:
        for encoder in encoders:
            self.market.put(encoder, [_LASTING, *listings])

    def begin(self, card: EmbedderCard, owner: str = "an engineer", **rest: Any) -> Build:
        return self.builds.begin(card, owner=owner, because="a test", champion=1, **rest)

    def load(self, build: Build) -> None:
        with self.builds.step(build.index, "load"):
            load_index.main(["--index", build.index])

    def verify(self, build: Build) -> None:
        """What the job does, in little."""
        lifecycle.finish_load(build.index, load_settings())
        self.require_loaded(build)
        self.builds.verified(passed(build.index))

    def rebuild(self, card: EmbedderCard, owner: str = "an engineer") -> Build:
        build = self.begin(card, owner)
        self.load(build)
        self.verify(build)
        lifecycle.swap_in(build.index, load_settings())
        return build

    def require_loaded(self, build: Build) -> None:
        require_same(held(self.search_index, build.index), self.market.rows(build.card))

    def reader(self, url: str = "") -> Reader:
        settings = load_settings(elasticsearch_url=url) if url else load_settings()
        return Reader(settings, lambda card: self.market.vector(card, _LASTING), _LASTING.item_id)


def _stage(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("LENS_LAKE", str(folder / "lake"))
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", url)
    monkeypatch.setenv("LENS_ALIAS", f"test-{uuid4().hex[:8]}")
    # What was put here long ago is not to be forgotten for being sold then.
    monkeypatch.setenv("LENS_INDEX_REMOVED_DAYS", "36500")
    monkeypatch.setattr(lifecycle, "_champion", lambda settings: 1)
    market = Market(Lake(str(folder / "lake")))
    stage = Stage(market, market.space(_ONE), market.space(_TWO, seed=1))
    stage.put(*(listing(f"p{n}", minute=n) for n in range(9)))
    return stage


@pytest.fixture
def stage(elasticsearch_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = _stage(tmp_path, elasticsearch_url, monkeypatch)
    yield stage
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", elasticsearch_url)
    remove_indexes(stage.search_index)


@pytest.fixture
def proxy(stage: Stage, elasticsearch_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between the jobs and the node."""
    with FaultyProxy(elasticsearch_url) as proxy:
        monkeypatch.setenv("LENS_ELASTICSEARCH_URL", proxy.url)
        yield proxy


def _died(*_: object, **__: object) -> None:
    raise KeyboardInterrupt("killed")


# ---- a loader that is killed -----------------------------------------------------------------------------------------

_LOADER = f"""
from beam_jobs import load_index
from beam_jobs.launcher import launch
load_index._PART_ROWS = {_PART_ROWS}
launch(load_index.main)
"""


def _start_loader(build: Build) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _LOADER, "--index", build.index], env=dict(os.environ))


def _parts_done(stage: Stage, build: Build) -> set[Part]:
    loads = Loads(stage.search_index, stage.search_index.get(build.index))
    begun = loads.unfinished()
    return loads.parts_done(begun) if begun else set()


def test_a_loader_that_is_killed_at_any_point_goes_on_where_it_stopped(stage: Stage, proxy: FaultyProxy) -> None:
    stage.put(*(listing(f"item{n:04d}", minute=n % 1000) for n in range(_ROWS)), encoders=(_ONE,))
    build = stage.begin(stage.one)
    for path, skip in [(r"\.loads/_doc/.*load", 0), (_BULK, 4), (r"\.loads/_doc/.*part", 5), (r"\.loads/_doc/.*load", 0)]:
        done = _parts_done(stage, build)
        reached, goes_on = threading.Event(), threading.Event()
        proxy.clear()
        proxy.add(_holding(reached, goes_on), path=path, skip=skip, times=1)
        loader = _start_loader(build)
        wait_for(lambda reached=reached, loader=loader: reached.is_set() or loader.poll() is not None, "the point")
        assert loader.poll() is None
        loader.kill()
        loader.wait()
        # What was on its way when the process died arrives all the same.
        goes_on.set()
        _require_only_what_was_missing(proxy, build, done)
    proxy.clear()
    assert _start_loader(build).wait() == 0
    [load] = Loads(stage.search_index, stage.search_index.get(build.index)).all()
    assert load.finished_at
    assert load.counts["read"] == _ROWS + 10
    stage.require_loaded(build)


def _require_only_what_was_missing(proxy: FaultyProxy, build: Build, done: set[Part]) -> None:
    sent = [action["_id"] for r in proxy.requests if r.path.endswith("/_bulk") for action, _ in r.actions]
    assert len(sent) == len(set(sent))
    assert len(sent) <= _ROWS + 10 - sum(part.rows or 0 for part in done)


def _holding(reached: threading.Event, goes_on: threading.Event) -> Fault:
    def fault(exchange: Exchange) -> Response:
        reached.set()
        goes_on.wait()
        return exchange.forward()

    return fault


# ---- a node that goes away -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("node"), choose_port([]))
    node.start()
    yield node
    node.stop()


def test_the_only_node_may_stop_and_start_during_every_step(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _stage(tmp_path, node.url, monkeypatch)
    monkeypatch.setattr(load_index, "_PART_ROWS", 100)
    before = stage.rebuild(stage.one)
    build = stage.begin(stage.two)
    stage.put(*(listing(f"item{n}", minute=n) for n in range(600)))
    with stage.reader() as reader:

        def goes_away(how: signal.Signals) -> None:
            reader.away.set()
            node.stop(how)

            def comes_back() -> None:
                node.start()
                reader.away.clear()

            threading.Thread(target=comes_back).start()

        with monkeypatch.context() as during:
            _before_call(during, Loads, "record", 2, lambda: goes_away(signal.SIGKILL))
            stage.load(build)
        wait_for(lambda: not reader.away.is_set(), "the node")
        stage.require_loaded(build)
        stage.put(listing("item7", SECOND, status=Status.SOLD), listing("late", SECOND))
        with monkeypatch.context() as during:
            _before_call(during, SearchIndex, "write_documents", 1, lambda: goes_away(signal.SIGTERM))
            stage.load(build)
        wait_for(lambda: not reader.away.is_set(), "the node")
        stage.verify(build)
        with monkeypatch.context() as during:
            _before_call(during, SearchIndex, "swap", 1, lambda: goes_away(signal.SIGKILL))
            assert lifecycle.swap_in(build.index, load_settings()) == before.index
        wait_for(lambda: not reader.away.is_set(), "the node")
        reader.has_seen_more()
        assert reader.seen[-1] == build.index
    assert states(stage.builds) == {before.index: State.KEPT, build.index: State.LIVE}
    stage.require_loaded(build)


def _before_call(monkeypatch: pytest.MonkeyPatch, of: type, name: str, nth: int, does: Callable[[], None]) -> None:
    """Do something before the nth call of a method."""
    method, calls = getattr(of, name), Counter[str]()

    def called(*arguments: Any, **keywords: Any) -> Any:
        calls["so far"] += 1
        if calls["so far"] == nth:
            does()
        return method(*arguments, **keywords)

    monkeypatch.setattr(of, name, called)
