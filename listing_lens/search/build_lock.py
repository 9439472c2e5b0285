"""The lock that lets one build or rollback of an alias run at a time.

It belongs to a build, not to a process: its steps may run in different processes, on different machines, and each renews it
while it runs. A lock that nobody renewed for ten minutes may be taken over. Times of several machines are compared here, but
only to decide who may go on: a swap that was taken over is refused by the alias's epoch (`SearchIndex.swap`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from elasticsearch import ConflictError, Elasticsearch, NotFoundError

from listing_lens.errors import LensError
from listing_lens.search.client import said_plainly
from listing_lens.search.index import SearchIndex

logger = logging.getLogger(__name__)

# The document in the index of build records.
_DOCUMENT = "lock"
# How long the lock lasts without a renewal: longer than Airflow takes from one task to the next, retries included.
LEASE = timedelta(minutes=10)
_POLL_S = 2.0


@dataclass(frozen=True)
class Holder:
    """Who holds the lock."""

    index: str
    owner: str
    heartbeat_at: datetime
    released: bool

    def is_free(self, now: datetime) -> bool:
        return self.released or now - self.heartbeat_at > LEASE


@dataclass(frozen=True)
class BuildLock:
    """The lock of one alias's builds.

    Attributes:
        search_index: the indexes behind the alias.
        now, sleep: the clock, and how to wait.
    """

    search_index: SearchIndex
    now: Callable[[], datetime]
    sleep: Callable[[float], None]

    @property
    def client(self) -> Elasticsearch:
        return self.search_index.client

    @said_plainly
    def holder(self) -> Holder | None:
        """Who holds the lock, or held it last; None if nobody ever did."""
        return self._held()[0]

    def under_way(self) -> str | None:
        """The index that somebody builds or rolls back to now; None if nobody does."""
        held = self.holder()
        return None if held is None or held.is_free(self.now()) else held.index

    @said_plainly
    def take(self, index_name: str, owner: str, wait: timedelta = timedelta(0), *, joining: bool = False) -> None:
        """Take the lock for a build, or renew it.

        Args:
            index_name: the build's index.
            owner: who takes it; one owner may take it again.
            wait: for how long to wait for another holder.
            joining: whether the build itself may hold it already, whoever began it: its steps do.

        Raises:
            LensError: another holds it for longer.
        """
        until = self.now() + wait
        self.search_index.ensure_bookkeeping()
        while True:
            held, condition = self._held()
            if (
                held is None
                or held.owner == owner
                or held.is_free(self.now())
                or (joining and held.index == index_name)
            ):
                # Otherwise another was quicker.
                if self._write(index_name, owner, condition):
                    _say_taken_over(held, index_name, owner)
                    return
            elif self.now() >= until:
                raise LensError(
                    f"index {held.index} is being built by {held.owner}, who was last heard of "
                    f"{(self.now() - held.heartbeat_at).total_seconds():.0f} s ago: wait for it to end, or for "
                    f"{LEASE.total_seconds() / 60:.0f} minutes if it was killed"
                )
            else:
                self.sleep(_POLL_S)

    @said_plainly
    def release(self, index_name: str) -> None:
        """Release the lock if it is this build's."""
        while True:
            held, condition = self._held()
            if held is None or held.index != index_name or held.released:
                return
            # A renewal may come first.
            if self._write(held.index, held.owner, condition, released=True):
                return

    def _held(self) -> tuple[Holder | None, dict[str, Any]]:
        """Who holds the lock, and the condition on which it may be overwritten."""
        try:
            answer = self.client.get(index=self.search_index.bookkeeping, id=_DOCUMENT)
        except NotFoundError:
            return None, {"op_type": "create"}
        lock = answer["_source"]["lock"]
        heartbeat_at = datetime.fromisoformat(lock["heartbeat_at"])
        held = Holder(lock["index"], lock["owner"], heartbeat_at, released=lock["released"])
        return held, {"if_seq_no": answer["_seq_no"], "if_primary_term": answer["_primary_term"]}

    def _write(self, index_name: str, owner: str, condition: dict[str, Any], *, released: bool = False) -> bool:
        lock = {"index": index_name, "owner": owner, "heartbeat_at": self.now().isoformat(), "released": released}
        try:
            self.client.index(
                index=self.search_index.bookkeeping, id=_DOCUMENT, document={"kind": "lock", "lock": lock}, **condition
            )
        except ConflictError:
            return False
        return True


def _say_taken_over(held: Holder | None, index_name: str, owner: str) -> None:
    if held and held.index != index_name and held.owner != owner and not held.released:
        logger.warning("the lock of %s (%s) was not renewed, and is taken over", held.index, held.owner)
