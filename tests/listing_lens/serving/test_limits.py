"""What keeps a busy service quick: every refusal here is one that a buyer would otherwise wait for."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.serving.limits import Breaker, Budget, BusyError, Gate, Lag, UnavailableError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FaultError(Exception):
    pass


def ask(breaker: Breaker, *, answers: bool) -> str:
    """What becomes of a request: "answered", "failed", or "refused" without having been made."""
    try:
        with breaker.watch(FaultError):
            if not answers:
                raise FaultError
        return "answered"
    except FaultError:
        return "failed"
    except UnavailableError:
        return "refused"


async def _pass(gate: Gate, budget: Budget) -> None:
    async with gate.enter(budget):
        pass


class TestGate:
    def test_lets_as_many_in_as_it_may_and_as_many_wait(self) -> None:
        async def story() -> None:
            gate, leave = Gate("the door", 2, 3), asyncio.Event()

            async def visit() -> None:
                async with gate.enter(Budget.of(60)):
                    await leave.wait()

            visits = [asyncio.create_task(visit()) for _ in range(5)]
            await asyncio.sleep(0)
            assert (gate.inside, gate.waiting) == (2, 3)
            with pytest.raises(BusyError, match="the door has 3 requests waiting"):
                await visit()
            leave.set()
            await asyncio.gather(*visits)
            assert (gate.inside, gate.waiting) == (0, 0)

        asyncio.run(story())

    def test_refuses_whoever_has_waited_for_all_of_his_time(self) -> None:
        async def story() -> None:
            gate = Gate("the door", 1, 1)
            async with gate.enter(Budget.of(60)):
                with pytest.raises(BusyError, match="was busy for all of the request's time"):
                    async with gate.enter(Budget.of(0.01)):
                        raise AssertionError("there was no place")
            async with gate.enter(Budget.of(60)):
                assert gate.inside == 1

        asyncio.run(story())

    def test_refuses_at_once_whoever_would_wait_too_long_and_says_when_to_come_back(self) -> None:
        async def story() -> None:
            clock = Clock()
            gate = Gate("the door", 2, 9, clock)
            async with gate.enter(Budget.of(60, clock)):
                clock.now += 10
            async with gate.enter(Budget.of(60, clock)), gate.enter(Budget.of(60, clock)):
                with pytest.raises(BusyError, match="more to do than can be done") as refused:
                    async with gate.enter(Budget.of(19, clock)):
                        raise AssertionError("there was no place")
                assert refused.value.retry_after_s == 5
                patient = asyncio.create_task(_pass(gate, Budget.of(21, clock)))
                await asyncio.sleep(0)
                assert gate.waiting == 1
            await patient
            # Once there is a place again, how long one was taken before does not matter.
            await _pass(gate, Budget.of(0.001, clock))

        asyncio.run(story())

    def test_forgets_whoever_has_gone(self) -> None:
        async def story() -> None:
            gate = Gate("the door", 1, 1)

            async def visit() -> None:
                async with gate.enter(Budget.of(60)):
                    raise AssertionError("he has gone")

            async with gate.enter(Budget.of(60)):
                waiting = asyncio.create_task(visit())
                await asyncio.sleep(0)
                waiting.cancel()
                with suppress(asyncio.CancelledError):
                    await waiting
            assert (gate.inside, gate.waiting) == (0, 0)
            async with gate.enter(Budget.of(60)):
                assert gate.inside == 1

        asyncio.run(story())


class TestBreaker:
    def test_opens_after_failures_in_a_row_and_asks_nothing_then(self) -> None:
        breaker = Breaker("the oracle", failures_to_open=3, clock=Clock())
        outcomes = [ask(breaker, answers=answers) for answers in (False, False, True, False, False, False, True)]
        assert outcomes == ["failed", "failed", "answered", "failed", "failed", "failed", "refused"]
        assert breaker.is_open

    def test_probes_once_after_a_pause_that_doubles(self) -> None:
        clock = Clock()
        breaker = Breaker("the oracle", failures_to_open=1, shortest_s=1, longest_s=3, clock=clock)
        asked = []
        ask(breaker, answers=False)
        for tenth in range(1, 110):
            clock.now = tenth / 10
            if ask(breaker, answers=False) == "failed":
                asked.append(clock.now)
        assert asked == pytest.approx([1, 3, 6, 9])
        clock.now = 12
        assert ask(breaker, answers=True) == "answered"
        assert not breaker.is_open

    def test_lets_one_probe_through_at_a_time(self) -> None:
        clock = Clock()
        breaker = Breaker("the oracle", failures_to_open=1, shortest_s=1, clock=clock)
        ask(breaker, answers=False)
        clock.now = 2
        with breaker.watch(FaultError):
            assert ask(breaker, answers=True) == "refused"
        assert ask(breaker, answers=True) == "answered"

    def test_says_when_to_ask_again(self) -> None:
        clock = Clock()
        breaker = Breaker("the oracle", failures_to_open=1, shortest_s=8, longest_s=8, clock=clock)
        ask(breaker, answers=False)
        clock.now = 3
        with pytest.raises(UnavailableError, match="the oracle does not answer") as refused, breaker.watch(FaultError):
            raise AssertionError("nothing is asked")
        assert refused.value.retry_after_s == 5

    def test_a_probe_that_was_cancelled_is_made_again(self) -> None:
        clock = Clock()
        breaker = Breaker("the oracle", failures_to_open=1, shortest_s=1, clock=clock)
        ask(breaker, answers=False)
        clock.now = 2
        with pytest.raises(asyncio.CancelledError), breaker.watch(FaultError):
            raise asyncio.CancelledError
        assert ask(breaker, answers=True) == "answered"

    @given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=60))
    def test_a_service_that_answers_again_is_asked_again(self, past: list[tuple[bool, float]]) -> None:
        clock = Clock()
        breaker = Breaker("the oracle", failures_to_open=2, shortest_s=1, longest_s=4, clock=clock)
        for answers, passed in past:
            clock.now += passed
            ask(breaker, answers=answers)
        clock.now += 4
        assert ask(breaker, answers=True) == "answered"
        assert ask(breaker, answers=True) == "answered"


class TestLag:
    """Time goes on only as the test says: the process is as late as it wakes up too late."""

    def run(self, late: list[float], most_s: float = 0.2) -> list[tuple[float, bool]]:
        """What is known of the lag after each measurement of a process that is so late, one time after the other."""
        clock, found, waking = Clock(), [], iter(late)

        async def sleep(seconds: float) -> None:
            found.append((lag.now_s, lag.is_too_long))
            clock.now += seconds + next(waking, float("nan"))
            if clock.now != clock.now:
                raise asyncio.CancelledError

        lag = Lag(most_s, clock=clock, sleep=sleep)
        with suppress(asyncio.CancelledError):
            asyncio.run(lag.measure())
        return found[1:]

    def test_who_is_late_takes_no_more(self) -> None:
        assert self.run([0.0, 0.1, 0.3]) == [
            (pytest.approx(0.0), False),
            (pytest.approx(0.1), False),
            (pytest.approx(0.3), True),
        ]

    def test_who_catches_up_takes_more_again(self) -> None:
        assert [is_too_long for _, is_too_long in self.run([0.9, 0.0, 0.0, 0.0])] == [True, True, True, False]
