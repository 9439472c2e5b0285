"""The life of an index: who may begin a build, when the alias may move, what is kept, what is removed.

The command line and Airflow call the same functions, one per step of a build; between the steps, Beam jobs load and verify.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from listing_lens.errors import LensError
from listing_lens.lake.fits import projection_exists
from listing_lens.lake.windows import Lake
from listing_lens.search.builds import Build, Builds, State
from listing_lens.search.index import PATIENCE_S, Index, SearchIndex
from listing_lens.search.loads import Loads
from listing_lens.settings import Settings
from models.embedder import EmbedderCard
from models.encoders.files import identify

if TYPE_CHECKING:
    # MLflow takes seconds to import.
    from models.registry import RegisteredEmbedder

logger = logging.getLogger(__name__)

# What `swap_in` requires, and can be told to pass over: that the alias was not moved since the build began, and that the
# champion is still the version that it was then.
FENCES = ("live", "champion")


@dataclass(frozen=True)
class Move:
    """What brings the champion live.

    Attributes:
        kind: build a new index, or point the alias back to one that was kept.
        version: of listing-embedder: the champion's.
        index: the one to roll back to; None for a rebuild.
    """

    kind: Literal["rebuild", "rollback"]
    version: int
    index: str | None = None


def what_follows(champion: RegisteredEmbedder | None, live: Index | None, kept: Sequence[Index]) -> Move | None:
    """What brings the champion live; None if there is no champion, or the live index is of its space already.

    `kept` are the indexes that may serve again as they are. Of several of the champion's space the newest is taken.
    """
    if champion is None or (live is not None and live.card.space == champion.card.space):
        return None
    ready = [index for index in kept if index.card.space == champion.card.space]
    if not ready:
        return Move("rebuild", champion.version)
    return Move("rollback", champion.version, max(ready, key=lambda index: index.build).name)


def connect_builds(settings: Settings, *, patience_s: float = PATIENCE_S) -> Builds:
    """The builds of the alias that the settings name."""
    return Builds(SearchIndex.connect(settings, patience_s=patience_s))


def begin_build(
    model: str,
    settings: Settings,
    *,
    owner: str,
    because: str,
    afresh: bool = False,
    unless_live: bool = False,
    wait: timedelta = timedelta(0),
) -> Build:
    """Take the lock and create an index for a version of listing-embedder; an unfinished build of its space goes on.

    Args:
        model: the version's number, or an alias in MLflow.
        settings: name the servers.
        owner, because: for the record: who builds, and what for.
        afresh: begin a new index in any case.
        unless_live: do nothing if the live index is of that version already.
        wait: for how long to wait for another build to end.

    Raises:
        AlreadyLiveError: it is live already, and `unless_live`.
        LensError: the version is not in the registry, its parts are not in reach, or another build is running.
    """
    # MLflow takes seconds to import.
    from listing_lens.registry import connect_registry

    registry, builds = connect_registry(settings), connect_builds(settings)
    while True:
        embedder = registry.get(model)
        require_in_reach(embedder.card, settings)
        build = builds.begin(
            embedder.card,
            owner=owner,
            because=because,
            model_version=embedder.version,
            champion=_champion(settings),
            afresh=afresh,
            unless_live=unless_live,
            wait=wait,
        )
        if registry.get(model).version == embedder.version:
            return build
        # An alias that was moved while another build was waited for.
        builds.give_up(build.index, f"{model} was moved from version {embedder.version} meanwhile")


def require_in_reach(card: EmbedderCard, settings: Settings) -> None:
    """Raise LensError unless this host can embed with an embedder: it finds the projection, and the encoder is the one named.

    The encoder's files are fetched if they are not here yet.
    """
    lake = Lake(settings.lake)
    if not projection_exists(lake, card.projection_id):
        raise LensError(
            f"projection {card.projection_id} is not in the lake {lake.root}, so no vectors of space {card.space} can be made: "
            "fit it again with `lens projection fit`, or check LENS_LAKE"
        )
    try:
        found = identify(card.encoder_source)
    except LensError as err:
        raise LensError(
            f"encoder {card.encoder_id} is not in reach, so no vectors of space {card.space} can be made: {err}"
        ) from err
    if found != card.encoder_id:
        raise LensError(
            f"encoder {card.encoder_source!r} is now {found}, but space {card.space} needs {card.encoder_id}: "
            "restore its files, or fit a projection for the encoder as it is now"
        )


def finish_load(index_name: str, settings: Settings) -> str | None:
    """Make what was loaded visible to searches; start to merge segments if the settings ask for it. Returns the merge's task."""
    builds = connect_builds(settings)
    with builds.step(index_name, "finish_load"):
        builds.search_index.finish_load(index_name)
        if not settings.index_segments:
            return None
        return builds.search_index.start_merge(index_name, settings.index_segments)


def is_merged(index_name: str, merge: str | None, settings: Settings) -> bool:
    """Whether a merge that `finish_load` started has ended. The build's lock is renewed."""
    if merge is None:
        return True
    builds = connect_builds(settings)
    builds.renew(index_name)
    return builds.search_index.is_merged(merge)


def swap_in(index_name: str, settings: Settings, *, force: Collection[str] = ()) -> str | None:
    """Point the alias to the index of a verified build. Returns the index that it pointed to before.

    A build that is live already is left as it is, so that a killed swap can be repeated.

    Args:
        index_name: the build's index.
        settings: name the servers.
        force: fences to pass over, of `FENCES`.

    Raises:
        LensError: the build has not passed its verification, or the alias or the champion was moved since it began.
    """
    require_fences(force)
    builds = connect_builds(settings)
    builds.settle()
    if builds.get(index_name).state is State.LIVE:
        logger.info("alias %s points to %s already", settings.alias, index_name)
        before = None
    else:
        with builds.step(index_name, "swap") as build:
            before = _swap(builds, build, settings, force)
        builds.settle()
    if force:
        builds.change(index_name, lambda build: {"forced": tuple(dict.fromkeys([*build.forced, *force]))})
    builds.lock.release(index_name)
    return before


def require_fences(names: Collection[str]) -> None:
    """Raise LensError for a name that none of `FENCES` has."""
    if unknown := sorted(set(names) - set(FENCES)):
        raise LensError(f"{unknown[0]!r} cannot be forced: of a swap, {' and '.join(FENCES)} can")


def _swap(builds: Builds, build: Build, settings: Settings, force: Collection[str]) -> str | None:
    if build.state is not State.VERIFIED:
        raise LensError(f"build {build.index} is {build.state}: the alias only moves to one that passed verify_index")
    champion = _champion(settings)
    if champion != build.champion and "champion" not in force:
        raise LensError(
            f"champion was version {build.champion} when build {build.index} began and is {champion} now: rebuild for "
            "that one, or force `champion`"
        )
    search_index = builds.search_index
    if "live" in force:
        return search_index.swap(build.index)
    # The epoch tells what went through `swap`, and this what somebody moved by hand.
    live = search_index.behind_alias()
    if (live[0] if live else None) != build.replaces:
        raise LensError(
            f"alias {search_index.alias!r} pointed to {build.replaces or 'no index'} when build {build.index} began, and "
            f"points to {', '.join(live) or 'none'} now: begin again, or force `live`"
        )
    return search_index.swap(build.index, epoch=build.epoch)


def begin_rollback(
    index_name: str | None, settings: Settings, *, owner: str, because: str, wait: timedelta = timedelta(0)
) -> Build:
    """Take the lock for a kept build (default: the one that was live last), to bring it up to date and swap back to it.

    Raises:
        LensError: there is no such build, or another one is running.
    """
    return connect_builds(settings).begin_rollback(
        index_name, owner=owner, because=because, champion=_champion(settings), wait=wait
    )


def give_up(index_name: str, settings: Settings, *, because: str) -> None:
    """End a build without success: it is not fed any more, and the lock is free for the next."""
    builds = connect_builds(settings, patience_s=0)
    builds.give_up(index_name, because)


def retire(settings: Settings, *, now: datetime | None = None) -> list[str]:
    """Remove the indexes that nothing needs any more: old ones beyond those kept for rollback, and what failed builds left.

    Returns their names.
    """
    builds = connect_builds(settings)
    builds.settle()
    every = builds.all()
    unneeded = to_retire(
        every,
        keep=settings.index_keep_builds,
        younger_than=timedelta(days=settings.index_keep_days),
        now=now or datetime.now(UTC),
    )
    there = {index.name for index in builds.search_index.all()}
    # Whoever began to remove an index may have been killed.
    half_removed = [build for build in every if build.state is State.RETIRED and build.index in there]
    gone = []
    for build in [*unneeded, *half_removed]:
        because = "retired by policy" if build.state is State.KEPT else build.ended_because or "it failed"
        try:
            _remove(builds, build, because)
        except _TakenUpError as err:
            logger.info("%s", err)
        else:
            gone.append(build.index)
    return gone


def retire_build(index_name: str, settings: Settings) -> None:
    """Remove one index that is not live.

    Raises:
        LensError: it is live, or being built.
    """
    builds = connect_builds(settings)
    build, holder = builds.get(index_name), builds.lock.holder()
    if build.state is State.LIVE:
        raise LensError(f"build {index_name} is live: roll back or rebuild before you retire it")
    if holder and holder.index == index_name and not holder.is_free(builds.now()):
        raise LensError(f"build {index_name} is in the hands of {holder.owner}: wait for it to end")
    _remove(builds, build, "retired by hand")


def to_retire(builds: Sequence[Build], *, keep: int, younger_than: timedelta, now: datetime) -> list[Build]:
    """The builds whose indexes can go: failed ones, and kept ones but the `keep` that were live last and any live since then.

    Args:
        builds: all of them.
        keep: how many kept ones stay in any case.
        younger_than: those stay that were live this long ago, or less.
        now: the time.
    """
    kept = sorted(
        (build for build in builds if build.state is State.KEPT),
        key=lambda build: build.live_at or build.started_at,
        reverse=True,
    )
    old = [build for build in kept[keep:] if now - (build.live_at or build.started_at) > younger_than]
    return [*old, *(build for build in builds if build.state is State.FAILED)]


class _TakenUpError(LensError):
    """A build is not what it was when it was chosen to be removed."""


def _remove(builds: Builds, build: Build, because: str) -> None:
    def changes(found: Build) -> dict[str, Any]:
        if found.state is State.RETIRED:
            return {}
        # Another build or a rollback may go on with it: whose change of the record comes first, wins.
        if found.updated_at != build.updated_at:
            raise _TakenUpError(
                f"build {build.index} was taken up meanwhile: see `lens index list`, and retire it again"
            )
        return {"state": State.RETIRED, "ended_because": because}

    search_index = builds.search_index
    builds.change(build.index, changes)
    if search_index.exists(build.index):
        # While the index is there, a removal that was killed is gone on with.
        Loads(search_index, search_index.get(build.index)).forget()
        search_index.delete(build.index)
    logger.info("index %s is removed: %s", build.index, because)


def _champion(settings: Settings) -> int | None:
    from listing_lens.registry import connect_registry

    champion = connect_registry(settings).champion()
    return champion.version if champion else None
