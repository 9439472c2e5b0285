"""Builds on a real node: one at a time, their records survive whoever wrote them, and the alias only moves as planned."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from tiny import remove_indexes

from listing_lens.errors import LensError
from listing_lens.search.build_lock import LEASE
from listing_lens.search.builds import AlreadyLiveError, Build, Builds, State
from listing_lens.search.index import SearchIndex
from listing_lens.search.lifecycle import to_retire
from listing_lens.search.verification import Check, Verification
from listing_lens.settings import load_settings
from models.embedder import EmbedderCard

CARD = EmbedderCard(encoder_source="x", encoder_id="x-1", encoder_dims=16, projection_id="p1", dims=4)
OTHER = CARD.model_copy(update={"projection_id": "p2"})


class Clock:
    """The time, which waiting moves on."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 1, tzinfo=UTC)
        self.slept = 0.0

    def now(self) -> datetime:
        self.time += timedelta(microseconds=1)
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def builds(elasticsearch_url: str, clock: Clock) -> Iterator[Builds]:
    settings = load_settings(elasticsearch_url=elasticsearch_url, alias=f"test-{uuid4().hex[:8]}")
    # Of an index that another has just made, Elasticsearch says for a moment that it is not there yet.
    search_index = SearchIndex.connect(settings, patience_s=60)
    yield Builds(search_index, clock.now, clock.sleep)
    remove_indexes(search_index)


def begin(builds: Builds, card: EmbedderCard = CARD, owner: str = "one", **rest: object) -> Build:
    return builds.begin(card, owner=owner, because="a test", **rest)  # type: ignore[arg-type]


def passed(index: str) -> Verification:
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    check = Check(name="reconciled", passed=True, says="All is there.", measured=1, threshold=1, examples=())
    return Verification(
        index=index, space=CARD.space, table_version=1, began_at=moment, ended_at=moment, checks=(check,), forced=()
    )


def go_live(builds: Builds, build: Build) -> None:
    builds.search_index.swap(build.index, epoch=build.epoch)
    builds.change(build.index, lambda _: {"state": State.LIVE, "live_at": builds.now()})
    builds.lock.release(build.index)


class TestBegin:
    def test_makes_an_empty_index_and_its_record(self, builds: Builds) -> None:
        build = begin(builds, model_version=3, champion=3)
        assert builds.search_index.counts(build.index) == {"searchable": 0, "removed": 0}
        assert builds.all() == [build]
        assert (build.state, build.model_version, build.replaces, build.epoch) == (State.BUILDING, 3, None, 0)

    def test_is_refused_while_another_builds(self, builds: Builds) -> None:
        first = begin(builds)
        with pytest.raises(LensError, match=f"index {first.index} is being built by one, .* wait for it to end"):
            begin(builds, OTHER, "two")
        with pytest.raises(LensError, match="is being built by one"):
            begin(builds, CARD, "two")
        assert builds.all() == [first]

    def test_waits_for_another_as_long_as_it_is_told(self, builds: Builds, clock: Clock) -> None:
        begin(builds)
        with pytest.raises(LensError, match="is being built by one"):
            begin(builds, OTHER, "two", wait=timedelta(minutes=5))
        assert clock.slept >= 300

    def test_goes_on_once_another_has_ended(self, builds: Builds, clock: Clock) -> None:
        first = begin(builds)
        sleep = clock.sleep

        def ends(seconds: float) -> None:
            sleep(seconds)
            if clock.slept > 60:
                builds.give_up(first.index, "a test")

        waiting = Builds(builds.search_index, clock.now, ends)
        assert begin(waiting, OTHER, "two", wait=timedelta(minutes=5)).card == OTHER
        assert builds.get(first.index).state is State.FAILED

    def test_takes_over_from_one_that_died(self, builds: Builds, clock: Clock) -> None:
        first = begin(builds)
        clock.time += LEASE + timedelta(seconds=1)
        second = begin(builds, OTHER, "two")
        with pytest.raises(LensError, match="is being built by two"), builds.step(first.index, "load"):
            pass
        assert builds.lock.holder().index == second.index  # type: ignore[union-attr]

    def test_goes_on_with_what_a_build_of_its_space_left(self, builds: Builds) -> None:
        first = begin(builds)
        builds.give_up(first.index, "it was killed")
        second = begin(builds, owner="two")
        assert (second.index, second.state, second.owner, second.ended_because) == (
            first.index,
            State.BUILDING,
            "two",
            None,
        )
        builds.give_up(first.index, "it was killed")
        assert begin(builds, owner="two", afresh=True).index != first.index

    def test_does_not_go_on_with_an_index_of_another_layout(self, builds: Builds, elasticsearch_url: str) -> None:
        first = begin(builds)
        builds.give_up(first.index, "it was killed")
        settings = load_settings(
            elasticsearch_url=elasticsearch_url, alias=builds.search_index.alias, index_options={"type": "int8_hnsw"}
        )
        other = Builds(SearchIndex.connect(settings), builds.now, builds.sleep)
        assert begin(other).index != first.index

    def test_tried_again_by_its_owner_gives_the_same_build(self, builds: Builds) -> None:
        assert begin(builds, afresh=True).index == begin(builds, afresh=True).index
        assert len(builds.all()) == 1

    def test_is_not_needed_if_the_embedder_is_live_already(self, builds: Builds) -> None:
        build = begin(builds)
        go_live(builds, build)
        with pytest.raises(AlreadyLiveError, match=f"the live index {build.index} is of space {CARD.space} already"):
            begin(builds, owner="two", unless_live=True)
        # The lock is free again.
        assert begin(builds, OTHER, "three", unless_live=True).card == OTHER

    def test_two_at_once_give_one(self, builds: Builds) -> None:
        outcomes: list[str] = []

        def run(owner: str) -> None:
            try:
                outcomes.append(begin(builds, OTHER if owner == "two" else CARD, owner).index)
            except LensError as err:
                outcomes.append(str(err))

        threads = [threading.Thread(target=run, args=(owner,)) for owner in ("one", "two", "three")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum("is being built by" in outcome for outcome in outcomes) == 2
        assert len(builds.all()) == 1


class TestSteps:
    def test_are_recorded_with_their_outcome(self, builds: Builds) -> None:
        build = begin(builds)
        with builds.step(build.index, "load"):
            assert builds.get(build.index).steps[0].outcome is None
        with pytest.raises(LensError), builds.step(build.index, "verify"):
            raise LensError("it is not what the lake holds")
        steps = builds.get(build.index).steps
        assert [(step.name, step.outcome) for step in steps] == [
            ("load", "done"),
            ("verify", "failed: it is not what the lake holds"),
        ]
        assert all(step.ended_at for step in steps)

    def test_of_a_build_that_failed_go_on(self, builds: Builds) -> None:
        build = begin(builds)
        builds.give_up(build.index, "it was killed")
        with builds.step(build.index, "load"):
            assert builds.get(build.index).state is State.BUILDING

    def test_of_a_build_that_is_over_are_refused(self, builds: Builds) -> None:
        first = begin(builds)
        go_live(builds, first)
        second = begin(builds, OTHER)
        go_live(builds, second)
        with (
            pytest.raises(LensError, match=f"build {first.index} is kept, so its step load is not repeated: roll back"),
            builds.step(first.index, "load"),
        ):
            pass

    def test_a_verification_makes_a_build_ready_and_a_failed_one_takes_that_back(self, builds: Builds) -> None:
        build = begin(builds)
        assert builds.verified(passed(build.index)).state is State.VERIFIED
        failed = passed(build.index).model_copy(
            update={
                "checks": (Check(name="size", passed=False, says="Too few.", measured=0, threshold=1, examples=()),)
            }
        )
        assert builds.verified(failed).state is State.BUILDING


class TestStates:
    def test_the_alias_is_the_truth_about_what_is_live(self, builds: Builds) -> None:
        first, second = begin(builds), None
        go_live(builds, first)
        second = begin(builds, OTHER)
        # The process was killed after it had moved the alias.
        builds.search_index.swap(second.index)
        states = {build.index: build.state for build in builds.all()}
        assert states == {first.index: State.KEPT, second.index: State.LIVE}

    def test_an_index_that_is_gone_is_retired(self, builds: Builds) -> None:
        build = begin(builds)
        builds.search_index.delete(build.index)
        assert builds.get(build.index).state is State.RETIRED

    def test_an_index_without_a_record_is_kept(self, builds: Builds) -> None:
        index = builds.search_index.create(CARD, "old")
        [build] = builds.all()
        assert (build.index, build.state, build.owner) == (index.name, State.KEPT, "unknown")
        builds.search_index.swap(index.name)
        assert builds.get(index.name).state is State.LIVE

    def test_a_build_that_nobody_works_on_for_a_day_has_failed_and_is_not_fed(
        self, builds: Builds, clock: Clock
    ) -> None:
        build = begin(builds)
        assert [index.name for index in builds.fed()] == [build.index]
        clock.time += timedelta(hours=25)
        assert builds.get(build.index).state is State.FAILED
        assert builds.fed() == []

    def test_the_live_one_is_fed_first(self, builds: Builds) -> None:
        first = begin(builds)
        go_live(builds, first)
        second = begin(builds, OTHER)
        assert [index.name for index in builds.fed()] == [first.index, second.index]


class TestRollback:
    def test_goes_to_the_one_that_was_live_last(self, builds: Builds, clock: Clock) -> None:
        names = []
        for n in range(3):
            build = begin(builds, CARD.model_copy(update={"projection_id": f"p{n}"}))
            if names:
                builds.change(names[-1], lambda _: {"state": State.KEPT, "live_at": clock.now()})
            go_live(builds, build)
            names.append(build.index)
        build = builds.begin_rollback(None, owner="two", because="a test")
        assert build.index == names[1]
        assert builds.begin_rollback(None, owner="two", because="a test").index == names[1]
        builds.give_up(build.index, "it was killed")
        assert builds.get(names[1]).state is State.KEPT

    def test_needs_a_kept_one(self, builds: Builds) -> None:
        with pytest.raises(LensError, match="no index of alias .* is kept: rebuild instead"):
            builds.begin_rollback(None, owner="two", because="a test")
        build = begin(builds)
        go_live(builds, build)
        with pytest.raises(LensError, match="is live already"):
            builds.begin_rollback(build.index, owner="two", because="a test")


class TestToRetire:
    NOW = datetime(2026, 11, 10, tzinfo=UTC)

    def build(self, name: str, state: State, days: float) -> Build:
        moment = self.NOW - timedelta(days=days)
        return Build(
            index=name,
            card=CARD,
            state=state,
            owner="one",
            because="a test",
            started_at=moment,
            updated_at=moment,
            live_at=moment if state in (State.LIVE, State.KEPT) else None,
        )

    @pytest.mark.parametrize(
        ("keep", "days", "gone"),
        [(1, 0, {"b", "c", "f"}), (2, 0, {"c", "f"}), (1, 5, {"c", "f"}), (0, 0, {"a", "b", "c", "f"}), (9, 0, {"f"})],
    )
    def test_what_is_beyond_the_number_and_the_age_goes_and_what_failed(
        self, keep: int, days: int, gone: set[str]
    ) -> None:
        builds = [
            self.build("live", State.LIVE, 1),
            self.build("a", State.KEPT, 1),
            self.build("b", State.KEPT, 4),
            self.build("c", State.KEPT, 9),
            self.build("building", State.BUILDING, 30),
            self.build("f", State.FAILED, 0.1),
        ]
        found = to_retire(builds, keep=keep, younger_than=timedelta(days=days), now=self.NOW)
        assert {build.index for build in found} == gone
