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
from dataclasses import dataclass
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
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake
from listing_lens.search import lifecycle
from listing_lens.search.builds import Build, Builds, State
from listing_lens.search.index import SearchIndex
from listing_lens.search.loads import Load, Loads, Part
from listing_lens.settings import load_settings
from listing_lens.stack.ports import choose_port
from models.embedder import EmbedderCard
from plugins import tasks

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
    for path, skip in [
        (r"\.loads/_doc/.*load", 0),
        (_BULK, 4),
        (r"\.loads/_doc/.*part", 5),
        (r"\.loads/_doc/.*load", 0),
    ]:
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


def test_the_only_node_may_stop_and_start_during_a_load_a_catch_up_and_a_swap(
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
        stage.put(*(listing(f"item{n}", SECOND, minute=n, price=7) for n in range(300)))
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


def test_a_step_that_meets_no_node_says_so_and_is_repeated(
    stage: Stage, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = stage.rebuild(stage.one)
    stage.put(listing("p0", SECOND, price=5), listing("p1", SECOND, status=Status.SOLD))
    # Little patience: what gives up after minutes otherwise.
    monkeypatch.setattr(load_index, "PATIENCE_S", 0.5)
    monkeypatch.setattr("beam_jobs.transforms.cluster.PATIENCE_S", 0.5)
    with monkeypatch.context() as during:
        _before_call(during, SearchIndex, "write_documents", 1, proxy.go_away)
        with pytest.raises(Exception, match="cannot be reached") as err:
            load_index.main(["--live"])
    assert "start it with `lens up`, or check LENS_ELASTICSEARCH_URL" in (refusal(err.value) or "")
    with pytest.raises(LensError, match="cannot be reached"):
        load_index.main(["--live"])
    proxy.come_back()
    load_index.main(["--live"])
    stage.require_loaded(build)

    second = stage.begin(stage.two)
    stage.load(second)
    stage.verify(second)
    impatient = stage.builds.search_index
    connect = lifecycle.connect_builds
    with monkeypatch.context() as during:
        during.setattr(lifecycle, "connect_builds", lambda settings, **_: connect(settings, patience_s=0.5))
        _before_call(during, SearchIndex, "swap", 1, proxy.go_away)
        with pytest.raises(LensError, match="cannot be reached"):
            lifecycle.swap_in(second.index, load_settings())
    proxy.come_back()
    assert impatient.behind_alias() == [build.index]
    lifecycle.swap_in(second.index, load_settings())
    assert states(stage.builds) == {build.index: State.KEPT, second.index: State.LIVE}


def test_an_index_that_cannot_be_read_does_not_seem_empty(stage: Stage) -> None:
    build = stage.rebuild(stage.one)
    search_index = stage.search_index
    search_index.client.indices.close(index=build.index)
    for ask in (
        lambda: search_index.versions(build.index, ["p0"]),
        lambda: search_index.documents(build.index, ["p0"], []),
    ):
        with pytest.raises(LensError, match="cannot say whether it holds 'p0'"):
            ask()
    search_index.client.indices.open(index=build.index)


# ---- a cluster that is busy, and answers that get lost ---------------------------------------------------------------


def test_documents_that_are_put_off_for_a_while_are_written_in_the_end(stage: Stage, proxy: FaultyProxy) -> None:
    stage.put(*(listing(f"item{n}", minute=n) for n in range(300)))
    build = stage.begin(stage.one)
    for status in (429, 503):
        proxy.add(refuse_items(status, lambda action: hash(action["_id"]) % 2 == 0), path=_BULK, times=2)
    stage.load(build)
    stage.require_loaded(build)
    [load] = Loads(stage.search_index, stage.search_index.get(build.index)).all()
    assert load.counts == {"read": 310, "written": 310, "stale": 0, "refused": 0, "forgotten": 0}


class _LosesAnswers:
    """Every request is carried out, but one in three answers to requests of a kind is lost, the first one included."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self._so_far = Counter[str]()

    def __call__(self, exchange: Exchange) -> Response:
        kind = f"{exchange.request.method} {exchange.request.path}"
        self._so_far[kind] += 1
        if self._so_far[kind] % 3 != 1:
            return exchange.forward()
        self.lost.append(kind)
        return drop(applied=True)(exchange)


def test_a_whole_life_in_which_answers_are_lost(
    stage: Stage, proxy: FaultyProxy, elasticsearch_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing = _LosesAnswers()
    monkeypatch.setenv("LENS_INDEX_KEEP_DAYS", "0")
    with monkeypatch.context() as direct:
        # The readers are not what is tested here: they have no patience.
        direct.setenv("LENS_ELASTICSEARCH_URL", elasticsearch_url)
        first = stage.rebuild(stage.one)
    with stage.reader(elasticsearch_url) as reader:
        proxy.add(losing, path=r"^/(?!_cluster)")
        second = stage.rebuild(stage.two)
        failed = stage.begin(stage.one)
        stage.builds.give_up(failed.index, "a test")
        rolled = stage.builds.begin_rollback(None, owner="an engineer", because="a test", champion=1)
        assert rolled.index == first.index
        stage.put(listing("p0", SECOND, price=5), listing("p1", SECOND, status=Status.SOLD))
        stage.load(rolled)
        stage.verify(rolled)
        lifecycle.swap_in(rolled.index, load_settings())
        assert lifecycle.retire(load_settings()) == [failed.index]
        reader.has_seen_more()
        assert reader.seen[-1] == first.index
    for path in (
        "/_bulk",
        "/_aliases",
        f"/{second.index}",
        f".builds/_doc/{second.index}",
        ".builds/_doc/lock",
        "part",
    ):
        assert any(path in request for request in losing.lost), path
    proxy.clear()
    assert states(stage.builds) == {
        first.index: State.LIVE,
        second.index: State.KEPT,
        failed.index: State.RETIRED,
    }
    assert stage.search_index.behind_alias() == [first.index]
    assert stage.search_index.epoch() == 3
    assert not stage.search_index.exists(failed.index)
    holder = stage.builds.lock.holder()
    assert holder
    assert holder.released
    for build in stage.builds.all():
        names = [(step.name, step.started_at) for step in build.steps]
        assert len(names) == len(set(names)), f"{build.index}: a step is recorded twice"
        assert all(step.outcome == "done" for step in build.steps)
    stage.require_loaded(first)


# ---- processes that die, and what comes afterwards -------------------------------------------------------------------


@pytest.fixture
def two_builds(stage: Stage) -> tuple[Build, Build]:
    """A live one, and one that is verified."""
    live, ready = stage.rebuild(stage.one), stage.begin(stage.two)
    stage.load(ready)
    stage.verify(ready)
    return live, ready


class TestASwapThatIsKilled:
    def test_before_the_request_is_repeated(
        self, stage: Stage, two_builds: tuple[Build, Build], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live, ready = two_builds
        with stage.reader() as reader:
            with monkeypatch.context() as dying:
                dying.setattr(SearchIndex, "swap", _died)
                with pytest.raises(KeyboardInterrupt):
                    lifecycle.swap_in(ready.index, load_settings())
            assert states(stage.builds) == {live.index: State.LIVE, ready.index: State.VERIFIED}
            lifecycle.swap_in(ready.index, load_settings())
            reader.has_seen_more()
        self._require_swapped(stage, live, ready)

    def test_after_the_request_is_repeated(
        self, stage: Stage, two_builds: tuple[Build, Build], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live, ready = two_builds
        with stage.reader():
            self._die_after_the_request(ready, monkeypatch)
            assert states(stage.builds) == {live.index: State.KEPT, ready.index: State.LIVE}
            lifecycle.swap_in(ready.index, load_settings())
        self._require_swapped(stage, live, ready)

    def test_after_the_request_and_given_up_leaves_both_indexes_for_rollback(
        self, stage: Stage, two_builds: tuple[Build, Build], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody repeats it: the next build comes, and the records are right all the same."""
        live, ready = two_builds
        monkeypatch.setenv("LENS_INDEX_KEEP_BUILDS", "1")
        monkeypatch.setenv("LENS_INDEX_KEEP_DAYS", "0")
        with stage.reader():
            self._die_after_the_request(ready, monkeypatch)
            lifecycle.give_up(ready.index, load_settings(), because="its process was killed")
            third = stage.rebuild(stage.one, owner="another engineer")
            assert states(stage.builds) == {
                live.index: State.KEPT,
                ready.index: State.KEPT,
                third.index: State.LIVE,
            }
            assert lifecycle.retire(load_settings()) == [live.index]
        rolled = stage.builds.begin_rollback(None, owner="an engineer", because="a test", champion=1)
        assert rolled.index == ready.index

    def test_does_not_make_the_previous_index_look_old(
        self, stage: Stage, two_builds: tuple[Build, Build], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An index that was live for weeks until a moment ago is what a rollback goes to, and is not retired."""
        live, ready = two_builds
        long_ago = stage.builds.now() - timedelta(days=30)
        older = stage.begin(stage.one, "an engineer", afresh=True)
        stage.builds.change(older.index, lambda _: {"state": State.KEPT, "live_at": long_ago + timedelta(seconds=1)})
        stage.builds.change(live.index, lambda _: {"live_at": long_ago})
        with stage.reader():
            self._die_after_the_request(stage.begin(stage.two), monkeypatch, verified=stage)
            assert live.index not in lifecycle.retire(load_settings())
        lifecycle.give_up(ready.index, load_settings(), because="its process was killed")
        rolled = stage.builds.begin_rollback(None, owner="an engineer", because="a test", champion=1)
        assert rolled.index == live.index
        assert ready.index == stage.search_index.require_live().name

    def test_before_retiring_leaves_nothing_behind(
        self, stage: Stage, two_builds: tuple[Build, Build], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live, ready = two_builds
        monkeypatch.setenv("LENS_INDEX_KEEP_BUILDS", "0")
        monkeypatch.setenv("LENS_INDEX_KEEP_DAYS", "0")
        lifecycle.swap_in(ready.index, load_settings())
        with stage.reader():
            for dies_in in ("forget", "delete"):
                with monkeypatch.context() as dying:
                    dying.setattr(*((Loads, "forget") if dies_in == "forget" else (SearchIndex, "delete")), _died)
                    with pytest.raises(KeyboardInterrupt):
                        lifecycle.retire(load_settings())
            assert lifecycle.retire(load_settings()) == [live.index]
        assert not stage.search_index.exists(live.index)
        assert states(stage.builds) == {live.index: State.RETIRED, ready.index: State.LIVE}

    def _die_after_the_request(
        self, build: Build, monkeypatch: pytest.MonkeyPatch, verified: Stage | None = None
    ) -> None:
        if verified:
            verified.verify(build)
        swap = SearchIndex.swap

        def dies(*arguments: Any, **keywords: Any) -> None:
            swap(*arguments, **keywords)
            raise KeyboardInterrupt("killed")

        with monkeypatch.context() as dying:
            dying.setattr(SearchIndex, "swap", dies)
            # A killed process records nothing any more.
            dying.setattr(Builds, "_end_step", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                lifecycle.swap_in(build.index, load_settings())

    def _require_swapped(self, stage: Stage, live: Build, ready: Build) -> None:
        assert states(stage.builds) == {live.index: State.KEPT, ready.index: State.LIVE}
        was_live, is_live = stage.builds.get(live.index).live_at, stage.builds.get(ready.index).live_at
        assert was_live
        assert is_live
        assert was_live >= is_live
        holder = stage.builds.lock.holder()
        assert holder
        assert holder.released


# ---- two engineers at once -------------------------------------------------------------------------------------------


class TestTwoEngineers:
    def test_who_rebuild_at_once_are_one_that_wins_and_one_that_is_told(self, stage: Stage) -> None:
        before = stage.rebuild(stage.one)
        outcomes: dict[str, Build | LensError] = {}

        def rebuild(owner: str) -> None:
            try:
                outcomes[owner] = stage.rebuild(stage.two, owner)
            except LensError as err:
                outcomes[owner] = err

        with stage.reader() as reader:
            engineers = [threading.Thread(target=rebuild, args=(f"engineer {n}",)) for n in range(2)]
            for engineer in engineers:
                engineer.start()
            while any(engineer.is_alive() for engineer in engineers):
                assert len(stage.search_index.behind_alias()) == 1
            for engineer in engineers:
                engineer.join()
            reader.has_seen_more()
        [told] = [outcome for outcome in outcomes.values() if isinstance(outcome, LensError)]
        [won] = [outcome for outcome in outcomes.values() if isinstance(outcome, Build)]
        assert "is being built by engineer" in str(told)
        assert states(stage.builds) == {before.index: State.KEPT, won.index: State.LIVE}
        stage.require_loaded(won)

    def test_of_whom_one_was_thought_dead_cannot_swap_over_the_other(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process that was suspended in its swap wakes up after another build went live."""
        before, slept = stage.rebuild(stage.one), stage.begin(stage.two, "the suspended")
        stage.load(slept)
        stage.verify(slept)
        swap, meanwhile = SearchIndex.swap, list[Build]()

        def suspended(*arguments: Any, **keywords: Any) -> str | None:
            with monkeypatch.context() as awake:
                awake.setattr(SearchIndex, "swap", swap)
                # Nobody heard of it for a quarter of an hour.
                late = Builds(stage.search_index, lambda: stage.builds.now() + timedelta(minutes=15))
                other = late.begin(stage.one, owner="another", because="a test", champion=1)
                stage.load(other)
                stage.verify(other)
                lifecycle.swap_in(other.index, load_settings())
                meanwhile.append(other)
            return swap(*arguments, **keywords)

        with stage.reader() as reader:
            with monkeypatch.context() as sleeping:
                sleeping.setattr(SearchIndex, "swap", suspended)
                with pytest.raises(LensError, match="was moved since the swap to .* was planned, and points to"):
                    lifecycle.swap_in(slept.index, load_settings())
            reader.has_seen_more()
            assert reader.seen[-1] == meanwhile[0].index
        assert states(stage.builds) == {
            before.index: State.KEPT,
            meanwhile[0].index: State.LIVE,
            slept.index: State.VERIFIED,
        }

    def test_an_old_run_that_is_repeated_days_later_is_refused(
        self, stage: Stage, two_builds: tuple[Build, Build]
    ) -> None:
        live, ready = two_builds
        lifecycle.swap_in(ready.index, load_settings())
        with stage.reader():
            for repeated in ("load", "swap"):
                with pytest.raises(LensError, match=f"{live.index} is kept, so its step {repeated} is not repeated"):
                    stage.load(live) if repeated == "load" else lifecycle.swap_in(live.index, load_settings())
        assert states(stage.builds) == {live.index: State.KEPT, ready.index: State.LIVE}

    def test_one_who_waits_to_roll_back_goes_to_what_was_live_last_by_then(
        self, stage: Stage, two_builds: tuple[Build, Build]
    ) -> None:
        first, ready = two_builds
        lifecycle.swap_in(ready.index, load_settings())
        third = stage.begin(stage.one)
        stage.load(third)
        stage.verify(third)

        def ends(_: float) -> None:
            lifecycle.swap_in(third.index, load_settings())

        waiting = Builds(stage.search_index, stage.builds.now, ends)
        rolled = waiting.begin_rollback(None, owner="another", because="a test", champion=1, wait=timedelta(hours=1))
        assert rolled.index == ready.index
        assert first.index != rolled.index
        holder = stage.builds.lock.holder()
        assert holder
        assert (holder.index, holder.owner) == (ready.index, "another")

    def test_what_one_takes_up_the_other_does_not_remove(
        self, stage: Stage, two_builds: tuple[Build, Build], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A rollback begins while the index that it goes to is about to be retired."""
        kept, ready = two_builds
        lifecycle.swap_in(ready.index, load_settings())
        monkeypatch.setenv("LENS_INDEX_KEEP_BUILDS", "0")
        monkeypatch.setenv("LENS_INDEX_KEEP_DAYS", "0")
        to_retire = lifecycle.to_retire

        def then_a_rollback_begins(*arguments: Any, **keywords: Any) -> list[Build]:
            chosen = to_retire(*arguments, **keywords)
            stage.builds.begin_rollback(kept.index, owner="another", because="a test", champion=1)
            return chosen

        monkeypatch.setattr(lifecycle, "to_retire", then_a_rollback_begins)
        with stage.reader():
            assert lifecycle.retire(load_settings()) == []
            stage.load(kept)
            stage.verify(kept)
            lifecycle.swap_in(kept.index, load_settings())
        assert states(stage.builds) == {kept.index: State.LIVE, ready.index: State.KEPT}

    def test_a_rollback_to_what_is_being_removed_is_refused_and_holds_nothing(
        self, stage: Stage, two_builds: tuple[Build, Build], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept, ready = two_builds
        lifecycle.swap_in(ready.index, load_settings())
        take_up = Builds._take_up

        def too_late(self: Builds, *arguments: Any) -> Build:
            # The removal comes between the choice and its record.
            lifecycle._remove(stage.builds, stage.builds.get(kept.index), "a test")
            return take_up(self, *arguments)

        monkeypatch.setattr(Builds, "_take_up", too_late)
        with pytest.raises(LensError, match="was retired meanwhile: begin again"):
            stage.builds.begin_rollback(kept.index, owner="another", because="a test", champion=1)
        assert states(stage.builds) == {kept.index: State.RETIRED, ready.index: State.LIVE}
        holder = stage.builds.lock.holder()
        assert holder
        assert holder.released


class TestTwoLoaders:
    """Two runs of a DAG feed one index at the same time: neither fails, and nothing is missing."""

    def test_of_one_load_both_end_well(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        build = stage.rebuild(stage.one)
        stage.put(listing("p0", SECOND, price=5), listing("late", SECOND))
        finish = load_index._finish

        def after_another(config: load_index.Config, rows: dict[str, int]) -> Load:
            with monkeypatch.context() as other:
                other.setattr(load_index, "_finish", finish)
                load_index.main(["--live"])
            return finish(config, rows)

        with monkeypatch.context() as slow:
            slow.setattr(load_index, "_finish", after_another)
            load_index.main(["--live"])
        stage.require_loaded(build)
        loads = Loads(stage.search_index, stage.search_index.get(build.index)).all()
        assert [load.counts["read"] for load in loads] == [10, 2]

    def test_of_releases_that_cut_parts_otherwise_go_on(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        build = stage.begin(stage.one)
        with monkeypatch.context() as dying:
            dying.setattr(load_index, "_PART_ROWS", 4)
            dying.setattr(load_index, "_finish", lambda *_: 1 / 0)
            with pytest.raises(Exception, match="division by zero"):
                load_index.main(["--index", build.index])
        assert len(_parts_done(stage, build)) == 3
        monkeypatch.setattr(load_index, "_PART_ROWS", 5)
        load_index.main(["--index", build.index])
        stage.require_loaded(build)


# ---- sellers who do not wait -----------------------------------------------------------------------------------------


def test_what_sellers_change_while_a_build_runs_is_in_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings are edited, sold and deleted before and after their rows are loaded; windows are embedded twice and late."""
    before = stage.rebuild(stage.one)
    monkeypatch.setattr(load_index, "_PART_ROWS", 3)
    third = Window(SECOND.end, SECOND.end + timedelta(days=1))
    late, newest = listing("late", SECOND, minute=5), listing("p8", third, price=7, image_uri="other.jpg")
    ties = [listing("tied", SECOND, price=price, status=status) for price in (1, 2) for status in Status]
    windows = [
        (listing("p0", SECOND, status=Status.SOLD), listing("p5", SECOND, status=Status.DELETED)),
        (newest, listing("p1", third, price=9)),
        # Older than what is there.
        (listing("p8", SECOND, price=1), listing("p0", FIRST, price=3), late),
        (listing("p8", SECOND, price=1), late),
        *((tie,) for tie in ties),
        *((tie,) for tie in reversed(ties)),
    ]
    build = stage.begin(stage.two)

    def sellers_change() -> None:
        if windows:
            stage.put(*windows.pop(0))

    record, write = Loads.record, SearchIndex.write_documents

    def record_and_sell(self: Loads, *arguments: Any) -> None:
        record(self, *arguments)
        sellers_change()

    def sell_and_write(self: SearchIndex, *arguments: Any) -> Any:
        sellers_change()
        return write(self, *arguments)

    with stage.reader():
        with monkeypatch.context() as busy:
            busy.setattr(Loads, "record", record_and_sell)
            busy.setattr(SearchIndex, "write_documents", sell_and_write)
            stage.load(build)
        while windows:
            sellers_change()
            load_index.main(["--index", build.index])
            load_index.main(["--live"])
        stage.load(build)
        stage.verify(build)
        lifecycle.swap_in(build.index, load_settings())
        load_index.main(["--index", before.index])
    for index in (before, build):
        stage.require_loaded(index)
        found = held(stage.search_index, index.index)
        assert found["p8"][0] == newest.version
        assert found["tied"][0] == max(tie.version for tie in ties)
        assert found["p0"][2] is None
        assert found["p5"][2] is None


def test_what_is_embedded_around_a_swap_comes_into_the_index_that_is_live_then(
    stage: Stage, two_builds: tuple[Build, Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The DAG loads the live index first, and then the others: the alias may move in between."""
    live, ready = two_builds
    stage.put(listing("p0", SECOND, status=Status.SOLD), listing("late", SECOND))
    load_index.main(["--live"])
    lifecycle.swap_in(ready.index, load_settings())
    monkeypatch.setattr(tasks, "_state_of", lambda _: "success")
    for arguments in tasks.find_other_indexes.function(None):
        load_index.main(["--index", arguments["index"]])
    stage.require_loaded(live)
    stage.require_loaded(ready)
    # The live one that lacks nothing is not read again.
    assert tasks.find_other_indexes.function(None) == [{"index": live.index}]


# ---- a disk that is full ---------------------------------------------------------------------------------------------


def test_an_index_on_a_full_disk_is_loaded_once_there_is_room(stage: Stage, proxy: FaultyProxy) -> None:
    build = stage.begin(stage.one)
    client = stage.search_index.client
    client.indices.put_settings(index=build.index, settings={"index.blocks.read_only_allow_delete": True})
    tried = threading.Event()

    def makes_room() -> None:
        wait_for(lambda: sum(r.path.endswith("/_bulk") for r in proxy.requests) >= 3, "repeated requests")
        tried.set()
        client.indices.put_settings(index=build.index, settings={"index.blocks.read_only_allow_delete": None})

    with_room = threading.Thread(target=makes_room)
    with_room.start()
    stage.load(build)
    with_room.join()
    assert tried.is_set()
    stage.require_loaded(build)


def test_a_kept_index_that_cannot_be_written_does_not_disturb_the_live_one(
    stage: Stage, two_builds: tuple[Build, Build]
) -> None:
    kept, live = two_builds
    lifecycle.swap_in(live.index, load_settings())
    client = stage.search_index.client
    stage.put(listing("p0", SECOND, price=5), listing("p1", SECOND, status=Status.SOLD))
    client.indices.put_settings(index=kept.index, settings={"index.blocks.write": True})
    with stage.reader():
        load_index.main(["--live"])
        with pytest.raises(Exception, match="cannot be written to") as err:
            load_index.main(["--index", kept.index])
        assert "remove the block" in (refusal(err.value) or "")
        stage.require_loaded(live)
        client.indices.put_settings(index=kept.index, settings={"index.blocks.write": None})
        load_index.main(["--index", kept.index])
        stage.require_loaded(kept)
