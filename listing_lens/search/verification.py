"""The report of a verification: which checks an index has passed, what was measured, and what was accepted all the same."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict, field_validator

from listing_lens.errors import LensError

# The checks by name, in the order of the report, and what to do about one that failed.
CHECKS = {
    "mapping": "rebuild the index",
    "windows": "embed the windows, then load the index again",
    "reconciled": "load the index again, or mend it with --repair",
    "vectors": "mend them with --repair, or rebuild the index",
    "self_retrieval": "rebuild the index",
    "recall": "rebuild the index, with a larger ef_construction in LENS_INDEX_OPTIONS if its vectors are right",
    "canaries": "make sure that the index and the encoder are of one space",
    "size": "find out what the live index holds and the lake does not",
    "ndcg": "look at the evaluation",
}
# Of these, the measured number is one of faults, and must not exceed the threshold; of all others, it must reach it.
_FAULTS = frozenset({"windows", "reconciled"})
# Examples quoted in the sentence; the report has all of them.
_QUOTED = 3


class Check(BaseModel):
    """One check of an index.

    Attributes:
        name: one of `CHECKS`.
        passed: None if it was left out.
        says: what was found, as a sentence without its full stop.
        measured, threshold: the number that decided, and the one that it was compared with; None if it was no number.
        examples: items and what is wrong with them, or windows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool | None
    says: str
    measured: float | None = None
    threshold: float | None = None
    examples: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in CHECKS:
            raise ValueError(f"there is no check {name!r}")
        return name

    @property
    def required(self) -> str | None:
        """The threshold, as what was measured must compare with it: "≥ 0.95"."""
        if self.threshold is None:
            return None
        return f"{'≤' if self.name in _FAULTS else '≥'} {self.threshold:g}"


class Verification(BaseModel):
    """What a verification found.

    Attributes:
        index: its full name.
        space: of the index's vectors.
        table_version: the version of the encoder's table that the index was compared with.
        checks: all of `CHECKS`, in their order.
        forced: names of checks that were accepted whatever their outcome.
        repaired: what was repaired before, as a sentence; None if nothing was asked to be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: str
    space: str
    table_version: int
    began_at: datetime
    ended_at: datetime
    checks: tuple[Check, ...]
    forced: tuple[str, ...] = ()
    repaired: str | None = None

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed and were not forced."""
        return tuple(check for check in self.checks if check.passed is False and check.name not in self.forced)

    @property
    def passed(self) -> bool:
        """Whether no check failed but those that were forced."""
        return not self.failed

    @property
    def sentence(self) -> str:
        """The outcome in one sentence; of a failure, with what to do."""
        if self.passed:
            overruled = [check.name for check in self.checks if check.passed is False]
            accepted = f", with {', '.join(overruled)} accepted by --force" if overruled else ""
            return f"index {self.index} passed its verification{accepted}"
        problems = "; ".join(_problem(check) for check in self.failed)
        remedies = ", ".join(dict.fromkeys(CHECKS[check.name] for check in self.failed))
        names = " ".join(f"--force {check.name}" for check in self.failed)
        return f"index {self.index} failed its verification: {problems}: {remedies}, or accept it with {names}"


def require_known(names: Iterable[str]) -> tuple[str, ...]:
    """Names of checks to force, each once. Raises LensError for one that no check has."""
    forced = tuple(dict.fromkeys(names))
    for name in forced:
        if name not in CHECKS:
            raise LensError(f"there is no check {name!r} to force: the checks are {', '.join(CHECKS)}")
    return forced


def _problem(check: Check) -> str:
    examples = f", e.g. {', '.join(check.examples[:_QUOTED])}" if check.examples else ""
    return f"{check.name} ({check.says}{examples})"
