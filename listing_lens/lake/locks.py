"""One committer at a time: a lock on a path in the lake, released when its holder dies.

In a folder it is a file lock, which the operating system releases when its holder dies; it works between processes that share
a file system with working locks. On Cloud Storage it is a lease: an object that its holder rewrites every few seconds. A
process that has seen it unchanged for the length of a lease, by its own clock, takes it over; clocks are never compared
between machines. A holder that was paused for longer finds out from `HeldLock.confirm`, which it calls before it commits.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from filelock import FileLock, Timeout

from listing_lens.errors import LensError
from models.cloud_storage import storage_client

if TYPE_CHECKING:
    from google.cloud.storage import Bucket, Client

logger = logging.getLogger(__name__)

# The longest time to wait for other processes' commits.
_PATIENCE_S = 3600.0
# How long a lease lasts without a renewal, how often its holder renews it, and how often others poll it.
_LEASE_S = 60.0
_RENEWAL_S = 15.0
_POLL_S = 1.0


class HeldLock(Protocol):
    """A lock that is held."""

    def confirm(self) -> None:
        """Raise LensError if the lock was taken over, in which case nothing more may be committed."""


class LeaseStore(Protocol):
    """Objects that are written conditionally on their current generation; 0 means that there is no object."""

    def generation(self, path: str) -> int:
        """The generation of an object; 0 if there is none."""

    def write_if(self, path: str, data: bytes, generation: int) -> int | None:
        """Write an object if its generation is still this one. Returns the new one; None if another writer came first."""

    def remove(self, path: str) -> None:
        """Remove an object, if it is still there."""


class CloudObjects:
    """Objects on Cloud Storage, by gs:// path, with generation preconditions."""

    def generation(self, path: str) -> int:
        bucket, name = self._place(path)
        found = bucket.get_blob(name)
        return int(found.generation) if found else 0

    def write_if(self, path: str, data: bytes, generation: int) -> int | None:
        from google.api_core.exceptions import PreconditionFailed

        bucket, name = self._place(path)
        blob = bucket.blob(name)
        try:
            blob.upload_from_string(data, if_generation_match=generation)
        except PreconditionFailed:
            return None
        return int(blob.generation)

    def remove(self, path: str) -> None:
        from google.api_core.exceptions import NotFound

        bucket, name = self._place(path)
        with suppress(NotFound):
            bucket.blob(name).delete()

    def _place(self, path: str) -> tuple[Bucket, str]:
        bucket, _, name = path.removeprefix("gs://").partition("/")
        return self._client.bucket(bucket), name

    @cached_property
    def _client(self) -> Client:
        return storage_client()


@contextmanager
def file_lock(path: str, patience_s: float = _PATIENCE_S) -> Iterator[HeldLock]:
    """Hold a lock on a file, which the process's death releases.

    Raises:
        LensError: another process held it for longer than `patience_s` seconds.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience_s)
    except Timeout:
        raise LensError(_held_too_long(path, patience_s)) from None
    try:
        yield _Always()
    finally:
        lock.release()


@contextmanager
def lease(
    store: LeaseStore,
    path: str,
    patience_s: float = _PATIENCE_S,
    lease_s: float = _LEASE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[HeldLock]:
    """Hold a lease on an object, renewed by a background thread.

    Args:
        store: where the object is written.
        path: the object's path.
        patience_s: seconds to wait for another holder.
        lease_s: seconds without a renewal after which a lease is taken over.
        clock: a monotonic clock, in seconds.
        sleep: how to wait.

    Raises:
        LensError: another process held it for longer than `patience_s` seconds.
    """
    generation = _acquire(store, path, patience_s, lease_s, clock, sleep)
    held = _Lease(store, path, generation)
    ended = threading.Event()
    renewing = threading.Thread(target=held.renew_until, args=(ended,), name=f"lease of {path}", daemon=True)
    renewing.start()
    try:
        yield held
    finally:
        ended.set()
        renewing.join()
        held.release()


def _acquire(
    store: LeaseStore,
    path: str,
    patience_s: float,
    lease_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> int:
    began = seen_since = clock()
    seen = store.generation(path)
    while True:
        if seen == 0 or clock() - seen_since >= lease_s:
            if seen:
                logger.warning(
                    "%s was not renewed for %g s: its holder is gone, the lease is taken over", path, lease_s
                )
            if (mine := store.write_if(path, _owner(), seen)) is not None:
                return mine
        elif clock() - began >= patience_s:
            raise LensError(_held_too_long(path, patience_s))
        else:
            sleep(_POLL_S)
        now_there = store.generation(path)
        if now_there != seen:
            seen, seen_since = now_there, clock()


@dataclass
class _Lease:
    store: LeaseStore
    path: str
    generation: int | None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def confirm(self) -> None:
        with self._lock:
            if self.generation is not None:
                self.generation = self.store.write_if(self.path, _owner(), self.generation)
            if self.generation is None:
                raise LensError(
                    f"{self.path} was taken over by another process, since this one was paused: run the job again"
                )

    def renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(_RENEWAL_S):
            try:
                self.confirm()
            except LensError as err:
                logger.warning("%s", err)
                return
            except OSError as err:
                # The next renewal may succeed, and the lease outlasts several failed ones.
                logger.warning("%s could not be renewed: %s", self.path, err)

    def release(self) -> None:
        with self._lock:
            if self.generation is not None and self.store.generation(self.path) == self.generation:
                self.store.remove(self.path)


class _Always:
    def confirm(self) -> None:
        """A file lock cannot be taken over while its holder lives."""


def _owner() -> bytes:
    # No two renewals write the same bytes, so that each creates a new generation.
    return f"{os.uname().nodename} {os.getpid()} {secrets.token_hex(4)}".encode()


def _held_too_long(path: str, patience_s: float) -> str:
    return f"{path} was held by another process for {patience_s:g} s: look for a job that hangs, and run this one again"
