"""Random stories of sellers, engineers and killed processes, beside a model that is a few dictionaries.

After every step the alias is on one index, every document is the version and the vector that it should be, and what was to be
kept is there. Loads run part by part in this process: Beam's start would take longer than all the rest. For longer stories:

    STORY_EXAMPLES=300 pytest tests/integration/test_index_story.py
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from rehearsal import Market, held, passed, require_same
from tiny import listing, remove_indexes

from beam_jobs import load_index
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.records import Listing, Status
from listing_lens.lake.windows import Lake
from listing_lens.search import lifecycle
from listing_lens.search.builds import FED, Build, Builds, State
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.loads import Loads
from listing_lens.settings import load_settings
from models.embedder import EmbedderCard

_EXAMPLES = int(os.environ.get("STORY_EXAMPLES", "5"))
_STEPS = 25
_KEEP_BUILDS, _KEEP_DAYS = 1, 2.0
_ENCODERS = ("encoder-one", "encoder-two")
_LASTING = listing("lasting")
_ITEMS = tuple(f"i{n}" for n in range(8))

_owners = st.sampled_from(("ann", "bob"))
_indexes = st.integers(0, 5)
_changes = st.tuples(
    st.sampled_from(_ITEMS),
    st.integers(0, 4),
    st.sampled_from((100, 200)),
    st.sampled_from((Status.ON_SALE, Status.ON_SALE, Status.SOLD, Status.DELETED)),
)
# How far a rebuild or a rollback gets.
_ENDS = ("swapped", "swapped", "begun", "verified", "killed before the request", "killed after the request")


class _World:
    """What the machine of a moment works in: read by the functions that stand in for clocks and MLflow."""

    now = datetime(2026, 11, 10, tzinfo=UTC)
    champion = 1


def _now() -> datetime:
    _World.now += timedelta(milliseconds=1)
    return _World.now


class Story(RuleBasedStateMachine):
    """The model: the tables' rows by encoder, the live index, when others stopped to be live, the last look at each index."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        _World.now, _World.champion = datetime(2026, 11, 10, tzinfo=UTC), 1
        self._folder = tempfile.TemporaryDirectory()
        self.settings = load_settings(
            elasticsearch_url=self.url,
            alias=f"test-{uuid4().hex[:8]}",
            lake=f"{self._folder.name}/lake",
            index_keep_builds=_KEEP_BUILDS,
            index_keep_days=_KEEP_DAYS,
            index_removed_days=36500,
        )
        self.search_index = SearchIndex.connect(self.settings, patience_s=60)
        self.builds = Builds(self.search_index, _now, lambda seconds: None)
        self.market = Market(Lake(self.settings.lake))
        self.cards = [
            self.market.space(_ENCODERS[0]),
            self.market.space(_ENCODERS[0], seed=1),
            self.market.space(_ENCODERS[1], seed=2),
        ]
        self.tables: dict[str, dict[str, Listing]] = {encoder: {} for encoder in _ENCODERS}
        self.written: dict[tuple[str, int], Listing] = {}
        self.live: str | None = None
        self.was_live: dict[str, datetime] = {}
        self.seen: dict[str, dict[str, int]] = {}

    def teardown(self) -> None:
        remove_indexes(self.search_index)
        self.search_index.client.close()
        self._folder.cleanup()

    # ---- sellers ----------------------------------------------------------------------------------------------------

    @initialize()
    def opens(self) -> None:
        self.sellers_change([("i0", 1, 100, Status.ON_SALE), ("i1", 1, 100, Status.ON_SALE)], _ENCODERS)

    @rule(
        changes=st.lists(_changes, min_size=1, max_size=5, unique_by=lambda change: change[0]),
        encoders=st.sampled_from((_ENCODERS, _ENCODERS, _ENCODERS[:1], _ENCODERS[1:])),
    )
    def sellers_change(self, changes: list[tuple[str, int, int, Status]], encoders: tuple[str, ...]) -> None:
        """A window is embedded: new versions, late ones, ties; by one encoder sooner than by the other."""
        listings = [
            listing(item, minute=minute, price=price, status=status, image_uri=f"{item}-{price}.jpg")
            for item, minute, price, status in changes
        ]
        for encoder in encoders:
            self.market.put(encoder, [_LASTING, *listings])
            table = self.tables[encoder]
            for one in [_LASTING, *listings]:
                self.written[one.item_id, one.version] = one
                if one.item_id not in table or one.version > table[one.item_id].version:
                    table[one.item_id] = one

    # ---- loads ------------------------------------------------------------------------------------------------------

    @rule(which=_indexes)
    def load(self, which: int) -> None:
        """What feeds an index, whatever it is: the live one, a kept one, one that is being built."""
        if index := self._index(which):
            self._load(index)

    @rule(which=_indexes, parts=st.integers(0, 3))
    def load_is_killed(self, which: int, parts: int) -> None:
        if index := self._index(which):
            config = load_index.configure(index, self.search_index, self.settings)
            self._load_parts(config, parts)

    def _is_behind(self, index: Index) -> bool:
        embeddings = Embeddings(Lake(self.settings.lake), index.card.encoder_id)
        return Loads(self.search_index, index).is_behind(embeddings)

    def _load(self, index: Index) -> None:
        while self._is_behind(index):
            config = load_index.configure(index, self.search_index, self.settings)
            self._load_parts(config, len(config.parts))
            load_index._finish(config, {})
        require_same(held(self.search_index, index.name), self._model(index.card))

    def _load_parts(self, config: load_index.Config, most: int) -> None:
        loading = load_index.LoadPart(config)
        loading.setup()
        for part in config.parts[:most]:
            list(loading.process(part))
        loading.teardown()

    def _model(self, card: EmbedderCard) -> dict[str, Any]:
        return {
            item: (one.version, str(one.status), self.market.vector(card, one) if one.searchable else None)
            for item, one in self.tables[card.encoder_id].items()
        }

    # ---- engineers --------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 2), owner=_owners, afresh=st.booleans())
    def begin(self, which: int, owner: str, afresh: bool) -> None:
        may = self._lock_is_free_for(owner)
        with _refused(not may):
            build = self.builds.begin(
                self.cards[which], owner=owner, because="a test", champion=_World.champion, afresh=afresh
            )
            assert build.state is State.BUILDING
            assert build.index != self.live
            assert build.index not in self.was_live

    @rule(which=_indexes)
    def verify(self, which: int) -> None:
        """Compared by hand: what the lake holds now, or not."""
        if index := self._index(which):
            self.search_index.finish_load(index.name)
            ok = not self._is_behind(index)
            self.builds.verified(passed(index, ok=ok))

    @rule(which=_indexes)
    def swap(self, which: int) -> None:
        if index := self._index(which):
            may = self._may_swap(index.name)
            with _refused(not may):
                lifecycle.swap_in(index.name, self.settings)
                self._moved_to(index.name)

    @rule(which=_indexes, after=st.booleans())
    def swap_is_killed(self, which: int, after: bool) -> None:
        index = self._index(which)
        if index is None or not self._may_swap(index.name) or index.name == self.live:
            return
        self._swap_is_killed(index.name, after)

    @rule(builds=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(_ENDS)), min_size=1, max_size=3), owner=_owners)
    def rebuild(self, builds: list[tuple[int, str]], owner: str) -> None:
        """Steps in a row, and builds in a row: random steps alone seldom get that far."""
        for card, until in builds:
            if self._lock_is_free_for(owner):
                build = self.builds.begin(self.cards[card], owner=owner, because="a test", champion=_World.champion)
                self._go_on(build, until)
                self.records_say_what_is()

    @rule(owner=_owners, named=st.one_of(st.none(), _indexes), until=st.sampled_from(_ENDS))
    def roll_back(self, owner: str, named: int | None, until: str) -> None:
        index = None if named is None else self._index(named)
        holder = self.builds.lock.holder()
        if not self._lock_is_free_for(owner) or (holder and not holder.released and holder.owner == owner):
            return
        kept = [build for build in self.builds.all() if build.state is State.KEPT]
        name = index.name if index else None
        if name:
            build = self.builds.get(name)
            may = build.state is State.KEPT or bool(
                build.live_at and build.state in FED and build.state is not State.LIVE
            )
        else:
            may = bool(kept)
        with _refused(not may):
            build = self.builds.begin_rollback(name, owner=owner, because="a test", champion=_World.champion)
            assert build.index in self.was_live
            self._go_on(build, until)

    def _go_on(self, build: Build, until: str) -> None:
        index = self.search_index.get(build.index)
        if until == "begun":
            return
        with self.builds.step(build.index, "load"):
            self._load(index)
        self.search_index.finish_load(index.name)
        self.builds.verified(passed(index))
        if until == "swapped":
            lifecycle.swap_in(index.name, self.settings)
            self._moved_to(index.name)
        elif until != "verified":
            self._swap_is_killed(index.name, after=until == "killed after the request")

    def _swap_is_killed(self, name: str, after: bool) -> None:
        swap = SearchIndex.swap

        def dies(*arguments: Any, **keywords: Any) -> None:
            if after:
                swap(*arguments, **keywords)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as dying:
            dying.setattr(SearchIndex, "swap", dies)
            dying.setattr(Builds, "_end_step", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                lifecycle.swap_in(name, self.settings)
        if after:
            self._moved_to(name)

    @rule(which=_indexes)
    def give_up(self, which: int) -> None:
        if index := self._index(which):
            lifecycle.give_up(index.name, self.settings, because="a test")

    @rule()
    def retire(self) -> None:
        for name in lifecycle.retire(self.settings, now=_now()):
            assert not self.search_index.exists(name)

    @rule(champion=st.integers(1, 2))
    def promote(self, champion: int) -> None:
        _World.champion = champion

    @rule(minutes=st.sampled_from((1, 11, 60 * 25, 60 * 24 * 3)))
    def time_passes(self, minutes: int) -> None:
        _World.now += timedelta(minutes=minutes)

    # ---- what is expected -------------------------------------------------------------------------------------------

    def _index(self, which: int) -> Index | None:
        there = self.search_index.all()
        return there[which % len(there)] if there else None

    def _lock_is_free_for(self, owner: str) -> bool:
        holder = self.builds.lock.holder()
        return holder is None or holder.owner == owner or holder.is_free(_World.now)

    def _may_swap(self, name: str) -> bool:
        build, holder = self.builds.get(name), self.builds.lock.holder()
        if build.state is State.LIVE:
            return True
        others = holder is not None and holder.index != name and not self._lock_is_free_for(build.owner)
        fenced = build.epoch != self.search_index.epoch() or build.champion != _World.champion
        return build.state is State.VERIFIED and not others and not fenced

    def _moved_to(self, name: str) -> None:
        if self.live and self.live != name:
            self.was_live[self.live] = _World.now
        self.was_live.pop(name, None)
        self.live = name

    @invariant()
    def the_alias_is_on_one_index(self) -> None:
        assert self.search_index.behind_alias() == ([self.live] if self.live else [])

    @invariant()
    def records_say_what_is(self) -> None:
        there = {index.name for index in self.search_index.all()}
        for build in self.builds.all():
            assert (build.state is State.LIVE) == (build.index == self.live)
            assert (build.state is State.RETIRED) == (build.index not in there)
            if build.index in self.was_live and build.index in there:
                assert build.state in FED, f"{build} was live, and is not fed any more"
                # What a rollback has taken up is kept again when that is given up.
                assert build.state is State.KEPT or build.live_at

    @invariant()
    def what_was_to_be_kept_is_there(self) -> None:
        last_first = sorted(self.was_live, key=lambda name: self.was_live[name], reverse=True)
        young = [n for n in last_first if _World.now - self.was_live[n] <= timedelta(days=_KEEP_DAYS)]
        for name in {*last_first[:_KEEP_BUILDS], *young}:
            assert self.search_index.exists(name), f"{name} was to be kept"

    @invariant()
    def every_document_is_a_version_that_was_written_and_never_an_older_one_than_before(self) -> None:
        seen: dict[str, dict[str, int]] = {}
        for index in self.search_index.all():
            rows = held(self.search_index, index.name)
            written = {item: self.written[item, version] for item, (version, _, _) in rows.items()}
            require_same(
                rows,
                {
                    item: (
                        one.version,
                        str(one.status),
                        self.market.vector(index.card, one) if one.searchable else None,
                    )
                    for item, one in written.items()
                },
            )
            seen[index.name] = {item: version for item, (version, _, _) in rows.items()}
            for item, version in self.seen.get(index.name, {}).items():
                assert seen[index.name][item] >= version
        self.seen = seen


@contextmanager
def _refused(refused: bool) -> Iterator[None]:
    """What is in the block raises a LensError, or not."""
    if refused:
        with pytest.raises(LensError):
            yield
    else:
        yield


def test_whatever_happens_in_whatever_order(elasticsearch_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_index, "_PART_ROWS", 3)
    monkeypatch.setattr(lifecycle, "_champion", lambda _: _World.champion)
    monkeypatch.setattr(
        lifecycle,
        "connect_builds",
        lambda settings, **_: Builds(SearchIndex.connect(settings, patience_s=60), _now, lambda seconds: None),
    )
    monkeypatch.setattr(Story, "url", elasticsearch_url)
    run_state_machine_as_test(
        Story,
        settings=settings(
            max_examples=_EXAMPLES,
            stateful_step_count=_STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
