"""An open-loop load generator: requests begin at a constant rate, whatever becomes of those before them.

Latencies count from when a request was due. A server that stalls for a second delays all that were due in that second, and a
client that waits for it before it asks again would measure one slow request only (G. Tene: coordinated omission).

The generator is a process of its own, so that what it takes of the processor is not taken from under what measures it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Protocol

import numpy as np
import uvloop

# A client that is refused comes back after this many seconds, which is the least that it is told.
_PAUSE_S = 1.0


@dataclass(frozen=True)
class Reply:
    """What a request led to.

    Attributes:
        status: HTTP's; 0 if there was no answer.
        index: the index that the answer names.
        wrong: what is wrong with the answer; "" if nothing is.
        detail: what a refusal says.
        retry_after: whether a refusal says when to come back.
    """

    status: int
    index: str = ""
    wrong: str = ""
    detail: str = ""
    retry_after: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        due: in seconds of the machine's monotonic clock.
        late_ms: milliseconds from then until the generator came to send it; they are its own fault, and counted all the same.
        ms: milliseconds from when it was due until the reply was complete.
    """

    due: float
    late_ms: float
    ms: float
    reply: Reply


Ask = Callable[[int], Awaitable[Reply]]


class Requests(Protocol):
    """A kind of requests; it is sent to the generator's process."""

    def open(self) -> AbstractAsyncContextManager[Ask]:
        """A client that asks by a number: another number may ask for something else."""
        ...


class LoadGenerator:
    """A process that makes requests, one load at a time."""

    def __enter__(self) -> LoadGenerator:
        self._process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, _type: type | None, _error: BaseException | None, _traceback: TracebackType | None) -> None:
        self._process.shutdown()

    def begin(self, requests: Requests, rate: float, seconds: float) -> Future[list[Outcome]]:
        """Make `rate` requests a second; the outcomes are in the order in which they were due."""
        return self._process.submit(_run_open, requests, rate, seconds)

    def run(self, requests: Requests, rate: float, seconds: float) -> list[Outcome]:
        return self.begin(requests, rate, seconds).result()

    def closed(self, requests: Requests, clients: int, seconds: float) -> list[Outcome]:
        """The other kind of load: clients that each ask again as soon as they are answered, or after a pause if refused."""
        return self._process.submit(_run_closed, requests, clients, seconds).result()


def percentiles(outcomes: Sequence[Outcome], *shares: float) -> list[float]:
    """Milliseconds of what was answered with 200 or 202; NaN if nothing was."""
    ms = [outcome.ms for outcome in outcomes if outcome.reply.status in (200, 202)]
    return [float(value) for value in np.percentile(ms, shares)] if ms else [float("nan")] * len(shares)


def _run_open(requests: Requests, rate: float, seconds: float) -> list[Outcome]:
    return uvloop.run(_open(requests, rate, seconds))


def _run_closed(requests: Requests, clients: int, seconds: float) -> list[Outcome]:
    return uvloop.run(_closed(requests, clients, seconds))


async def _open(requests: Requests, rate: float, seconds: float) -> list[Outcome]:
    async with requests.open() as ask:
        start = time.monotonic() + 0.1
        running = []
        for number in range(int(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(due - time.monotonic())
            running.append(asyncio.create_task(_timed(ask, number, due)))
        return list(await asyncio.gather(*running))


async def _closed(requests: Requests, clients: int, seconds: float) -> list[Outcome]:
    numbers, until = count(), time.monotonic() + seconds
    outcomes: list[Outcome] = []

    async def client(ask: Ask) -> None:
        while (now := time.monotonic()) < until:
            outcome = await _timed(ask, next(numbers), now)
            outcomes.append(outcome)
            if outcome.reply.retry_after:
                await asyncio.sleep(_PAUSE_S)

    async with requests.open() as ask:
        await asyncio.gather(*(client(ask) for _ in range(clients)))
    return outcomes


async def _timed(ask: Ask, number: int, due: float) -> Outcome:
    late_ms = 1000 * (time.monotonic() - due)
    reply = await ask(number)
    return Outcome(due, late_ms, 1000 * (time.monotonic() - due), reply)
