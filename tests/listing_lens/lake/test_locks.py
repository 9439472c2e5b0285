"""Locks: one holder at a time, who may die, be paused, or lose sight of the store; time passes only as a test says."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from unittest import mock

import pytest
from conditional_storage import Storage
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from listing_lens.errors import LensError
from listing_lens.lake import locks
from listing_lens.lake.locks import CloudObjects, file_lock, lease

PATH = "gs://bucket/items.lance.lock"


class Objects:
    """A store of objects with generations, that behaves as Cloud Storage does."""

    def __init__(self) -> None:
        self.generations: dict[str, int] = {}
        self._last = 100
        self._lock = threading.Lock()

    def generation(self, path: str) -> int:
        return self.generations.get(path, 0)

    def write_if(self, path: str, data: bytes, generation: int) -> int | None:
        with self._lock:
            if self.generation(path) != generation:
                return None
            self._last += 1
            self.generations[path] = self._last
            return self._last

    def remove(self, path: str) -> None:
        self.generations.pop(path, None)


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class TestLease:
    def test_is_held_by_one_and_gone_afterwards(self) -> None:
        objects, clock = Objects(), Clock()
        with lease(objects, PATH, clock=clock, sleep=clock.sleep) as held:
            held.confirm()
            with (
                pytest.raises(LensError, match="was held by another process for 5 s: look for a job that hangs"),
                lease(objects, PATH, patience_s=5, clock=clock, sleep=clock.sleep),
            ):
                pytest.fail("two hold it")
        assert objects.generations == {}

    def test_of_a_holder_that_died_is_taken_over_when_it_was_not_renewed(self) -> None:
        objects, clock = Objects(), Clock()
        objects.write_if(PATH, b"dead", 0)
        with lease(objects, PATH, lease_s=60, clock=clock, sleep=clock.sleep) as held:
            held.confirm()
        assert 60 <= clock.now < 65

    def test_of_a_holder_that_lives_is_not_taken_over(self) -> None:
        objects, clock = Objects(), Clock()
        objects.write_if(PATH, b"alive", 0)

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if clock.now % 10 == 0:
                objects.write_if(PATH, b"alive", objects.generation(PATH))

        with (
            pytest.raises(LensError, match="was held by another process for 600 s"),
            lease(objects, PATH, patience_s=600, lease_s=60, clock=clock, sleep=sleep),
        ):
            pytest.fail("it was renewed every 10 s")

    def test_that_was_taken_over_may_not_commit_any_more(self) -> None:
        objects, clock = Objects(), Clock()
        with lease(objects, PATH, clock=clock, sleep=clock.sleep) as paused:
            other = lease(objects, PATH, lease_s=60, clock=clock, sleep=clock.sleep)
            with other as second:
                second.confirm()
                with pytest.raises(LensError, match="was taken over by another process, since this one was paused"):
                    paused.confirm()
                with pytest.raises(LensError, match="was taken over"):
                    paused.confirm()
                second.confirm()

    def test_ends_with_an_error_inside_it(self) -> None:
        objects = Objects()
        with pytest.raises(ValueError, match="inside"), lease(objects, PATH):
            raise ValueError("inside")
        assert objects.generations == {}

    def test_is_renewed_while_it_is_held(self, monkeypatch: pytest.MonkeyPatch) -> None:
        renewed = threading.Event()
        objects = Objects()
        monkeypatch.setattr(locks, "_RENEWAL_S", 0.001)
        write_if = objects.write_if

        def noted(path: str, data: bytes, generation: int) -> int | None:
            if generation:
                renewed.set()
            return write_if(path, data, generation)

        with mock.patch.object(objects, "write_if", noted), lease(objects, PATH):
            assert renewed.wait(600)


class Holders(RuleBasedStateMachine):
    """Three processes that acquire, renew, pause and release in any order: two never may commit."""

    def __init__(self) -> None:
        super().__init__()
        self.objects, self.clock = Objects(), Clock()
        self.held: dict[int, locks._Lease] = {}

    @rule(process=st.integers(0, 2))
    def acquire(self, process: int) -> None:
        if process not in self.held:
            generation = locks._acquire(self.objects, PATH, 1000, 60, self.clock, self.clock.sleep)
            self.held[process] = locks._Lease(self.objects, PATH, generation)

    @rule(process=st.integers(0, 2))
    def release(self, process: int) -> None:
        if process in self.held:
            self.held.pop(process).release()

    @invariant()
    def at_most_one_may_commit(self) -> None:
        may = 0
        for held in self.held.values():
            try:
                held.confirm()
            except LensError:
                continue
            may += 1
        assert may <= 1


TestHolders = Holders.TestCase
TestHolders.settings = settings(max_examples=50, stateful_step_count=12, deadline=None)


class TestOnCloudStorage:
    def test_a_lease_is_an_object_that_is_gone_afterwards(self, cloud: Storage) -> None:
        with lease(CloudObjects(), PATH) as held:
            held.confirm()
            assert "bucket/items.lance.lock" in cloud.objects
        assert cloud.objects == {}

    def test_is_written_on_condition_of_the_generation(self, cloud: Storage) -> None:
        objects = CloudObjects()
        first = objects.write_if(PATH, b"one", 0)
        assert first == objects.generation(PATH)
        assert objects.write_if(PATH, b"two", 0) is None
        assert objects.write_if(PATH, b"two", first) == objects.generation(PATH)
        assert objects.write_if(PATH, b"three", first) is None
        assert [asked for _, asked in cloud.writes] == [0, first]

    def test_an_object_that_is_gone_is_of_no_generation(self, cloud: Storage) -> None:
        objects = CloudObjects()
        assert objects.generation(PATH) == 0
        objects.remove(PATH)
        assert cloud.writes == []


class TestFileLock:
    def test_is_held_by_one(self, tmp_path: Path) -> None:
        path = str(tmp_path / "new" / "items.lance.lock")
        with (
            file_lock(path) as held,
            pytest.raises(LensError, match="was held by another process for 0.01 s: look for a job that hangs"),
            file_lock(path, patience_s=0.01),
        ):
            held.confirm()

    def test_ends_with_its_holder(self, tmp_path: Path) -> None:
        path = str(tmp_path / "items.lance.lock")
        process = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(path,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with file_lock(path, patience_s=0.01) as held:
            held.confirm()


def _hold_and_die(path: str) -> None:
    with file_lock(path):
        os.kill(os.getpid(), signal.SIGKILL)
