"""A clock that stands still but for the sleeping, which takes no time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from listing_lens.search.client import Clock


@dataclass
class FalseTime:
    """Seconds so far, and the pauses that they are made of; every pause is as long as chance allows.

    `meanwhile` is called in each pause, with how many there have been: for what is to change while somebody waits.
    """

    meanwhile: Callable[[int], None] = lambda pauses: None
    seconds: float = 0.0
    pauses: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.seconds, self._sleep, lambda shortest, longest: longest)

    def _sleep(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds
            self.pauses.append(seconds)
            count = len(self.pauses)
        self.meanwhile(count)
