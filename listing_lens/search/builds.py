"""Builds: the record of every index, from its first document to its removal.

Records are documents of the index `<alias>.builds`, beside the indexes that they describe: whoever can move the alias can read
them, and they are changed by compare-and-set. The alias itself is the truth about which index is live; a record that a killed
process left behind is read in the light of it. One build at a time holds the lock (`listing_lens.search.build_lock`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from elasticsearch import ConflictError, NotFoundError
from pydantic import BaseModel, ConfigDict

from listing_lens.errors import LensError
from listing_lens.search.build_lock import BuildLock
from listing_lens.search.client import said_plainly
from listing_lens.search.index import Index, Layout, SearchIndex
from listing_lens.search.loads import Loads, Progress
from listing_lens.search.verification import Verification
from models.embedder import EmbedderCard

logger = logging.getLogger(__name__)

_RENEWAL_S = 20.0
# A build that nothing was done for in this time is not fed any more, and may be removed.
_ABANDONED = timedelta(hours=24)
# As many records as are looked at, the newest ones.
_MOST_BUILDS = 1000


class State(StrEnum):
    """What a build is: being filled, ready to go live, live, kept for rollback, given up, or removed."""

    BUILDING = "building"
    VERIFIED = "verified"
    LIVE = "live"
    KEPT = "kept"
    FAILED = "failed"
    RETIRED = "retired"


# These receive new listings, so their encoders are in use.
FED = frozenset({State.BUILDING, State.VERIFIED, State.LIVE, State.KEPT})


class Step(BaseModel):
    """A step of a build: when it ran, and how it ended; `outcome` is None while it runs, or if its process was killed."""

    model_config = ConfigDict(frozen=True)

    name: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = None


class Build(BaseModel):
    """The record of an index."""

    model_config = ConfigDict(frozen=True)

    index: str
    card: EmbedderCard
    state: State
    # Who works on it, and what for.
    owner: str
    because: str
    started_at: datetime
    updated_at: datetime
    layout: Layout | None = None
    # The version of listing-embedder that it is of; and what was the champion, live, and the alias's epoch when it began.
    model_version: int | None = None
    champion: int | None = None
    replaces: str | None = None
    epoch: int | None = None
    # Of the first load, as of the last step.
    progress: Progress | None = None
    steps: tuple[Step, ...] = ()
    verification: Verification | None = None
    # Fences and checks that somebody overrode by name.
    forced: tuple[str, ...] = ()
    # When it went live, or stopped to be.
    live_at: datetime | None = None
    ended_because: str | None = None


class AlreadyLiveError(LensError):
    """A build is not needed: the live index is of its space."""


@dataclass(frozen=True)
class Builds:
    """The builds of one alias, and their lock.

    Attributes:
        search_index: the indexes behind the alias.
        now, sleep: the clock, and how to wait for the lock.
    """

    search_index: SearchIndex
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep

    @property
    def client(self) -> Any:
        return self.search_index.client

    # ---- records ----------------------------------------------------------------------------------------------------

    @said_plainly
    def all(self) -> list[Build]:
        """Every build, newest first, those without an index included; and indexes without a record, as what they seem to be."""
        recorded = self._recorded()
        known = {build.index for build in recorded}
        indexes = {index.name: index for index in self.search_index.all()}
        found = [*recorded, *(_unrecorded(index) for name, index in indexes.items() if name not in known)]
        live = set(self.search_index.behind_alias())
        held = self.lock.under_way()
        seen = [
            self._as_it_is(build, build.index in indexes, build.index in live, build.index == held) for build in found
        ]
        return sorted(seen, key=lambda build: (build.started_at, build.index), reverse=True)

    def _recorded(self) -> list[Build]:
        self.search_index.ensure_bookkeeping()
        self.client.indices.refresh(index=self._name)
        answer = self.client.search(
            index=self._name, query={"term": {"kind": "build"}}, sort=[{"began": "desc"}], size=_MOST_BUILDS
        )
        return [Build.model_validate(hit["_source"]["build"]) for hit in answer["hits"]["hits"]]

    @said_plainly
    def settle(self) -> None:
        """Bring the records in line with the alias, as whoever moves it must before and after.

        A process may be killed between the two. What was live would not be known to have been, or until when.
        """
        live, now = set(self.search_index.behind_alias()), self.now()
        recorded = {build.index for build in self._recorded() if build.state is State.LIVE}
        for name in recorded - live:
            # When it stopped to be live decides how long it is kept.
            self.change(name, lambda build: {"state": State.KEPT, "live_at": now} if build.state is State.LIVE else {})
        for name in live - recorded:
            self.change(name, lambda build: {"state": State.LIVE, "live_at": now, "ended_because": None})

    def get(self, index_name: str) -> Build:
        """The build of an index. Raises LensError when there is none."""
        for build in self.all():
            if build.index == index_name:
                return build
        raise LensError(f"there is no build {index_name!r}: list them with `lens index list`")

    def fed(self) -> list[Index]:
        """The indexes that receive new listings: the live one first, then those kept or being built, newest first."""
        builds = sorted(
            (build for build in self.all() if build.state in FED), key=lambda build: build.state is not State.LIVE
        )
        return [self.search_index.get(build.index) for build in builds]

    @said_plainly
    def change(self, index_name: str, changes: Callable[[Build], dict[str, Any]]) -> Build:
        """Change a record by compare-and-set; `changes` gives new values by field, and is asked again if another came first."""
        self.search_index.ensure_bookkeeping()
        while True:
            try:
                answer = self.client.get(index=self._name, id=index_name)
                build = Build.model_validate(answer["_source"]["build"])
                condition = {"if_seq_no": answer["_seq_no"], "if_primary_term": answer["_primary_term"]}
            except NotFoundError:
                build, condition = _unrecorded(self.search_index.get(index_name)), {"op_type": "create"}
            changed = Build.model_validate({**dict(build), "updated_at": self.now(), **changes(build)})
            try:
                self._put(changed, **condition)
            except ConflictError:
                continue
            return changed

    def _as_it_is(self, build: Build, exists: bool, live: bool, held: bool) -> Build:
        """A record in the light of what is there: its process may have been killed before it could change it."""
        state, because = build.state, build.ended_because
        if live:
            state, because = State.LIVE, None
        elif not exists:
            state = State.RETIRED
        elif state is State.LIVE:
            state = State.KEPT
        elif state in (State.BUILDING, State.VERIFIED) and not held and self.now() - build.updated_at > _ABANDONED:
            state, because = _given_up(build), "nothing was done for it in a day"
        return build.model_copy(update={"state": state, "ended_because": because})

    def verified(self, verification: Verification) -> Build:
        """Record a verification; a build that has passed it may go live."""

        def changes(build: Build) -> dict[str, Any]:
            state = build.state
            if state in (State.BUILDING, State.VERIFIED):
                state = State.VERIFIED if verification.passed else State.BUILDING
            return {"verification": verification, "state": state}

        return self.change(verification.index, changes)

    # ---- beginning, and giving up -----------------------------------------------------------------------------------

    def begin(
        self,
        card: EmbedderCard,
        *,
        owner: str,
        because: str,
        model_version: int | None = None,
        champion: int | None = None,
        afresh: bool = False,
        unless_live: bool = False,
        wait: timedelta = timedelta(0),
    ) -> Build:
        """Take the lock, and create an index for an embedder's vectors, or go on with one that a build left unfinished.

        Args:
            card: the embedder.
            owner: who builds, e.g. "airflow rebuild_index RUN". The same owner may begin again.
            because: what the build is for, in a few words.
            model_version: the embedder's version in the registry.
            champion: which version is the champion now.
            afresh: do not go on with an unfinished build.
            unless_live: do nothing if the live index is of the embedder's space, once another build has ended.
            wait: for how long to wait for another build to end.

        Raises:
            AlreadyLiveError: the live index is of the embedder's space, and `unless_live`.
            LensError: another build is running.
        """
        name = f"{self.search_index.alias}-{card.space}-{self.now():%Y%m%dt%H%M%S%f}"
        self.lock.take(name, owner, wait)
        with self._released_on_refusal(owner):
            self.settle()
            if unless_live:
                self._require_not_live(card)
            return self._begin(name, card, owner, because, model_version, champion, afresh)

    def _require_not_live(self, card: EmbedderCard) -> None:
        live = self.search_index.live()
        if live and live.card.space == card.space:
            raise AlreadyLiveError(f"the live index {live.name} is of space {card.space} already: nothing is built")

    def _begin(
        self,
        name: str,
        card: EmbedderCard,
        owner: str,
        because: str,
        model_version: int | None,
        champion: int | None,
        afresh: bool,
    ) -> Build:
        unfinished = [build for build in self.all() if self._can_go_on(build, card)]
        if afresh:
            # An earlier try of this very build is gone on with all the same.
            unfinished = [build for build in unfinished if build.owner == owner and build.state is not State.FAILED]
        if unfinished:
            name = unfinished[0].index
            self.lock.take(name, owner)
            logger.info("build %s goes on where it stopped", name)
        live = self.search_index.behind_alias()
        values: dict[str, Any] = {
            "state": State.BUILDING,
            "owner": owner,
            "because": because,
            "layout": self.search_index.layout,
            "model_version": model_version,
            "champion": champion,
            "replaces": live[0] if live else None,
            "epoch": self.search_index.epoch(),
            "verification": None,
            "forced": (),
            "ended_because": None,
        }
        if not unfinished:
            # The record comes first: an index without one would be nobody's.
            new = Build(index=name, card=card, started_at=self.now(), updated_at=self.now(), **values)
            self._put(new)
            self.search_index.create(card, name.rsplit("-", 1)[1])
        return self._take_up(name, values)

    def _take_up(self, name: str, values: dict[str, Any]) -> Build:
        """Change the record of a build that is begun, unless it was retired since it was chosen."""

        def changes(build: Build) -> dict[str, Any]:
            if build.state is State.RETIRED:
                raise LensError(f"build {name} was retired meanwhile: begin again")
            return values

        return self.change(name, changes)

    @contextmanager
    def _released_on_refusal(self, owner: str) -> Iterator[None]:
        """Release the lock when a build cannot begin: nobody knows it, so nobody would give it up."""
        try:
            yield
        except LensError:
            with suppress(LensError):
                held = self.lock.holder()
                if held and held.owner == owner:
                    self.lock.release(held.index)
            raise

    def begin_rollback(
        self,
        index_name: str | None,
        *,
        owner: str,
        because: str,
        champion: int | None = None,
        wait: timedelta = timedelta(0),
    ) -> Build:
        """Take the lock for a kept build, by name or the one that was live last, to bring it up to date and swap back to it.

        Raises:
            LensError: there is no such build, it is not kept, or another build is running.
        """
        holder = self.lock.holder()
        if holder and holder.owner == owner and not holder.released:
            # An earlier try of this very rollback has chosen.
            index_name = holder.index
        self.lock.take(self._to_roll_back_to(index_name).index, owner, wait)
        with self._released_on_refusal(owner):
            self.settle()
            # Whoever was waited for may have moved the alias.
            build, live = self._to_roll_back_to(index_name), self.search_index.behind_alias()
            self.lock.take(build.index, owner)
            values = {
                "state": State.BUILDING,
                "owner": owner,
                "because": because,
                "champion": champion,
                "replaces": live[0] if live else None,
                "epoch": self.search_index.epoch(),
                # What was live once is kept again if the rollback is given up.
                "live_at": build.live_at or build.started_at,
                "verification": None,
                "forced": (),
                "ended_because": None,
            }
            return self._take_up(build.index, values)

    def _to_roll_back_to(self, index_name: str | None) -> Build:
        """The kept build of a name, or the one that was live last."""
        if index_name:
            build = self.get(index_name)
            if build.state not in (State.KEPT, State.LIVE) and not (build.live_at and build.state in FED):
                raise LensError(f"build {index_name} is {build.state}, not kept: rebuild instead")
        else:
            kept = [build for build in self.all() if build.state is State.KEPT]
            if not kept:
                raise LensError(f"no index of alias {self.search_index.alias!r} is kept: rebuild instead")
            build = max(kept, key=lambda build: build.live_at or build.started_at)
        if build.state is State.LIVE:
            raise LensError(f"build {build.index} is live already: there is nothing to roll back to")
        return build

    def give_up(self, index_name: str, because: str) -> Build:
        """End a build that is not live without success, and release its lock. One that was live before is kept again."""
        if self.get(index_name).state is not State.LIVE:
            self.change(index_name, lambda build: {"state": _given_up(build), "ended_because": because})
        self.lock.release(index_name)
        return self.get(index_name)

    def _can_go_on(self, build: Build, card: EmbedderCard) -> bool:
        return (
            build.card == card
            and build.layout == self.search_index.layout
            and build.state in (State.BUILDING, State.VERIFIED, State.FAILED)
            and build.live_at is None
            and self.search_index.exists(build.index)
        )

    # ---- steps ------------------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, index_name: str, name: str) -> Iterator[Build]:
        """Run a step of a build: the lock is renewed meanwhile, and the record says when the step ran and how it ended.

        Raises:
            LensError: the build is over, or the lock is another build's.
        """
        build = self.get(index_name)
        if build.state in (State.KEPT, State.RETIRED):
            remedy = "roll back to it instead" if build.state is State.KEPT else "begin a new one"
            raise LensError(f"build {index_name} is {build.state}, so its step {name} is not repeated: {remedy}")
        self.lock.take(index_name, build.owner, joining=True)
        if build.state is State.FAILED:
            build = self._take_up(index_name, {"state": State.BUILDING, "ended_because": None})
        began = Step(name=name, started_at=self.now())
        # A change whose answer was lost is made twice.
        self.change(index_name, lambda build: {} if began in build.steps else {"steps": (*build.steps, began)})
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew_until, args=(ended, build), name=f"lock of {index_name}")
        renewing.start()
        outcome = "stopped"
        try:
            yield build
            outcome = "done"
        except Exception as err:
            outcome = f"failed: {err}"
            raise
        finally:
            ended.set()
            renewing.join()
            self._end_step(index_name, began.model_copy(update={"ended_at": self.now(), "outcome": outcome}))

    def renew(self, index_name: str) -> None:
        """Renew the lock of a build whose work goes on elsewhere, between two steps. Raises LensError if it is another's."""
        self.lock.take(index_name, self.get(index_name).owner, joining=True)

    def _end_step(self, index_name: str, ended: Step) -> None:
        def closed(build: Build) -> tuple[Step, ...]:
            began = (ended.name, ended.started_at)
            return tuple(ended if (step.name, step.started_at) == began else step for step in build.steps)

        try:
            progress = self._progress(index_name)
            self.change(index_name, lambda build: {"steps": closed(build), "progress": progress})
        except LensError as err:
            # The step's own outcome must not be lost because its record cannot be reached.
            logger.warning("step %s of %s could not be recorded: %s", ended.name, index_name, err)

    def _renew_until(self, ended: threading.Event, build: Build) -> None:
        while not ended.wait(_RENEWAL_S):
            try:
                self.lock.take(build.index, build.owner, joining=True)
                self._note_progress(build.index)
            except Exception as err:  # noqa: BLE001
                # The next renewal may succeed, so nothing may end this thread; if the lock was taken over, the swap is refused.
                logger.warning("the lock of %s could not be renewed: %s", build.index, err)

    def _note_progress(self, index_name: str) -> None:
        progress = self._progress(index_name)
        self.change(index_name, lambda _: {"progress": progress})

    def _progress(self, index_name: str) -> Progress | None:
        return Loads(self.search_index, self.search_index.get(index_name)).progress()

    # ---- documents --------------------------------------------------------------------------------------------------

    @property
    def lock(self) -> BuildLock:
        """The lock that one build at a time holds."""
        return BuildLock(self.search_index, self.now, self.sleep)

    def _put(self, build: Build, **condition: Any) -> None:
        document = {"kind": "build", "began": build.started_at.isoformat(), "build": build.model_dump(mode="json")}
        self.client.index(index=self._name, id=build.index, document=document, **condition)

    @property
    def _name(self) -> str:
        return self.search_index.bookkeeping


def _given_up(build: Build) -> State:
    return State.KEPT if build.live_at else State.FAILED


def _unrecorded(index: Index) -> Build:
    """What is known of an index without a record: it was made before there were any, or the records were lost."""
    return Build(
        index=index.name,
        card=index.card,
        state=State.KEPT,
        owner="unknown",
        because="its record is missing",
        started_at=index.created_at,
        updated_at=index.created_at,
        live_at=index.created_at,
    )
