"""What keeps a busy service quick: time budgets, gates with bounded queues, a circuit breaker, and the process's own lag.

A request that cannot be answered in its time is refused as early as that is known, and told when to come back. So what is
accepted stays quick, however much is asked, and work on which nobody waits any more is not begun.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

Clock = Callable[[], float]

# How much of what is left of its time a request may wait. A longer queue answers no more requests: each only waits longer,
# and none is answered as quickly as usual.
WAITING_SHARE = 0.25
# How much the newest measurement counts in a running mean.
_NEWEST = 0.2
# How often the process's lag is measured, in seconds.
_LAG_EVERY_S = 0.05


class RefusedError(Exception):
    """A request is refused for now.

    Attributes:
        reason: a sentence for whoever asked.
        retry_after_s: when to ask again, in seconds.
    """

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_s = reason, retry_after_s


class BusyError(RefusedError):
    """There is more to do than can be done in time."""


class UnavailableError(RefusedError):
    """What the answer depends on is away, or too slow."""


@dataclass(frozen=True)
class Budget:
    """The time that a request has."""

    ends: float
    clock: Clock = time.monotonic

    @classmethod
    def of(cls, seconds: float, clock: Clock = time.monotonic) -> Budget:
        return cls(clock() + seconds, clock)

    @property
    def left(self) -> float:
        """Seconds; zero or less when it is spent."""
        return self.ends - self.clock()


class Gate:
    """Lets a number of requests through at a time; of the others, a number may wait, in order of arrival.

    Attributes:
        place_s: the mean time for which a place is taken, in seconds, as measured.
    """

    def __init__(self, what: str, at_once: int, waiting: int, clock: Clock = time.monotonic) -> None:
        self.what, self.at_once, self.most_waiting = what, at_once, waiting
        self.inside = self.waiting = 0
        self.place_s = 0.0
        self._free, self._clock = asyncio.Semaphore(at_once), clock

    @asynccontextmanager
    async def enter(self, budget: Budget) -> AsyncIterator[None]:
        """Wait for a place, within the budget.

        Raises:
            BusyError: too many are waiting, or the budget will be, or was, spent on waiting.
        """
        if self._free.locked():
            self._require_time(budget)
        self.waiting += 1
        try:
            async with asyncio.timeout(max(0.0, budget.left)):
                await self._free.acquire()
        except TimeoutError:
            raise BusyError(f"{self.what} was busy for all of the request's time", self._wait_s()) from None
        finally:
            self.waiting -= 1
        self.inside += 1
        entered = self._clock()
        try:
            yield
        finally:
            self.inside -= 1
            self._free.release()
            self.place_s = newest_counts(self._clock() - entered, self.place_s)

    def _require_time(self, budget: Budget) -> None:
        wait_s = self._wait_s()
        if self.waiting >= self.most_waiting:
            raise BusyError(f"{self.what} has {self.waiting} requests waiting, which is as many as may", wait_s)
        if wait_s > WAITING_SHARE * budget.left:
            raise BusyError(f"{self.what} has more to do than can be done in the request's time", wait_s)

    def _wait_s(self) -> float:
        """How long whoever came now would wait while all places are taken, in seconds."""
        return (self.waiting + 1) * self.place_s / self.at_once


def newest_counts(measured: float, mean: float) -> float:
    """A running mean, in which newer measurements count more; 0 is none yet."""
    return measured if not mean else (1 - _NEWEST) * mean + _NEWEST * measured


@dataclass
class Breaker:
    """Stops asking a service that does not answer: after some failures in a row it opens, for a time that doubles.

    Then a single request probes whether the service is back (M. Nygard, Release It!, 2nd ed., 2018).

    Attributes:
        what: names the service.
        failures_to_open: how many in a row.
        shortest_s, longest_s: how long it stays open.
    """

    what: str
    failures_to_open: int = 5
    shortest_s: float = 0.5
    longest_s: float = 2.0
    clock: Clock = time.monotonic
    failures: int = field(default=0, init=False)
    _opened_at: float | None = field(default=None, init=False)
    _open_s: float = field(default=0.0, init=False)
    _probing: bool = field(default=False, init=False)

    @property
    def is_open(self) -> bool:
        """Whether requests are refused, but for the probe that is due."""
        return self._opened_at is not None

    @contextmanager
    def watch(self, *faults: type[Exception]) -> Iterator[None]:
        """Run a request, whose exceptions of these types are the service's fault; others, and being cancelled, say nothing.

        Raises:
            UnavailableError: the breaker is open, and nothing was asked.
        """
        probe = self._admit()
        try:
            yield
        except faults:
            self._failed(probe)
            raise
        else:
            self._succeeded()
        finally:
            if probe:
                self._probing = False

    def _admit(self) -> bool:
        if self._opened_at is None:
            return False
        left = self._opened_at + self._open_s - self.clock()
        if left > 0 or self._probing:
            raise UnavailableError(f"{self.what} does not answer", max(1.0, left))
        self._probing = True
        return True

    def _failed(self, probe: bool) -> None:
        self.failures += 1
        if probe:
            self._open(min(2 * self._open_s, self.longest_s))
        elif self._opened_at is None and self.failures >= self.failures_to_open:
            self._open(self.shortest_s)

    def _open(self, seconds: float) -> None:
        self._opened_at, self._open_s = self.clock(), seconds

    def _succeeded(self) -> None:
        self.failures, self._opened_at = 0, None


class Lag:
    """How late this process comes to what it has to do: requests wait for it before any other limit counts them.

    Attributes:
        most_s: a process that is later than this takes no more requests.
        now_s: how late it is, in seconds; while it catches up, the value halves with each measurement.
    """

    def __init__(
        self,
        most_s: float,
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.most_s, self.now_s = most_s, 0.0
        self._clock, self._sleep = clock, sleep

    @property
    def is_too_long(self) -> bool:
        return self.now_s > self.most_s

    async def measure(self) -> None:
        """Measure until cancelled."""
        while True:
            due = self._clock() + _LAG_EVERY_S
            await self._sleep(_LAG_EVERY_S)
            self.now_s = max(self._clock() - due, self.now_s / 2)
