"""What the stack remembers between two commands: its processes, and the addresses of those that are healthy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from listing_lens.errors import LensError
from listing_lens.settings import stack_file
from listing_lens.stack.private_file import write_private

# Longer than any start may take.
_LOCK_PATIENCE_S = 900.0


class ProcessRecord(BaseModel, frozen=True):
    """A process, identified so that no later process with its number is taken for it."""

    pid: int
    created: float
    port: int


class StackState(BaseModel):
    """The content of ``stack.json``; ``settings.running_stack`` reads its addresses."""

    addresses: dict[str, str] = {}
    processes: dict[str, ProcessRecord] = {}

    @classmethod
    def load(cls, home: Path) -> StackState:
        """The recorded state; empty if it is unreadable: processes also carry a mark by which they are found."""
        try:
            return cls.model_validate_json(stack_file(home).read_text())
        except (FileNotFoundError, ValidationError):
            return cls()

    def save(self, home: Path) -> None:
        if self.processes:
            write_private(stack_file(home), self.model_dump_json(indent=2))
        else:
            stack_file(home).unlink(missing_ok=True)


@contextmanager
def stack_lock(home: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """One `lens up` or `lens down` at a time; the system frees the lock of one that is killed."""
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / "stack.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        try:
            lock.acquire(timeout=_LOCK_PATIENCE_S)
        except Timeout:
            raise LensError(f"another `lens up` or `lens down` holds {lock.lock_file}: wait for it or end it") from None
    try:
        yield
    finally:
        lock.release()
