"""Search sessions to validate and compare encoders on, with the photos of the items they showed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsSingleton, TaggedOutput

from beam_jobs.pairs.elements import HashedPair, StoredPhoto
from beam_jobs.pairs.photos import LoadPhotos
from beam_jobs.pairs.rules import Rules
from beam_jobs.transforms.windows import (
    Landed,
    WindowTarget,
    WriteRecords,
    count_as,
    landed_listings,
    landed_sessions,
)
from listing_lens.images.source import ImageSource
from listing_lens.lake.pairs import (
    PAIR_SESSION_SCHEMA,
    PAIR_SESSIONS,
    PAIRS_PER_GROUP,
    SESSION_ITEM_SCHEMA,
    SESSION_ITEMS,
)
from listing_lens.lake.records import Listing, QueryKind, Session, by_version
from listing_lens.lake.window import Window
from models.sampling import sample_number


class SampleSessions(beam.PTransform):
    """(hashed pairs, dropped pairs) → (files of the sessions and their items, counts).

    Sessions are sampled by a hash of their ids. Only the ids of the items that the sampled sessions showed are sent to every
    worker, so that only those items of the catalog are shuffled.

    Args:
        rules: how many sessions to sample, and the salt.
        images: where photos are read from.
        landed: landed windows of sessions.
        catalog: windows of listings in which the shown items are looked up.
        target: where the files are written; its window is the one whose sessions are sampled.
    """

    def __init__(
        self,
        rules: Rules,
        images: ImageSource,
        *,
        landed: Sequence[Landed],
        catalog: Sequence[Landed],
        target: WindowTarget,
    ) -> None:
        super().__init__()
        self._rules = rules
        self._images = images
        self._landed = landed
        self._catalog = catalog
        self._target = target

    def expand(
        self, pcolls: tuple[beam.PCollection[HashedPair], beam.PCollection[tuple[str, str]]]
    ) -> tuple[beam.PCollection[tuple[str, str]], beam.PCollection[tuple[str, int]]]:
        hashed, twins = pcolls
        rules, target, pipeline = self._rules, self._target, hashed.pipeline
        sessions = (
            pipeline
            | "Session windows" >> beam.Create(self._landed)
            | "Spread windows" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(lambda part: landed_sessions(target.lake, part, target.window))
        )
        usable = sessions | "Keep usable" >> beam.ParDo(KeepUsableSessions()).with_outputs("left_out", main="sound")
        ranked = usable.sound | "Ranks" >> beam.Map(lambda session: (_session_rank(session, rules), session))
        lowest = (
            ranked
            | "Ranks alone" >> beam.Keys()
            | "Sample" >> beam.combiners.Top.Smallest(rules.sessions)
            | "Last of them" >> beam.Map(lambda ranks: max(ranks, default=()))
        )
        split = ranked | "Up to it" >> beam.FlatMap(_up_to, AsSingleton(lowest)).with_outputs("others", main="sampled")
        sampled = split.sampled
        queries = sampled | "Queries" >> LoadPhotos(_query_photo, self._images, rules.image_side)
        shown = (
            pipeline
            | "Catalog windows" >> beam.Create(self._catalog)
            | "Spread catalog windows" >> beam.Reshuffle()
            | "Shown ones" >> beam.FlatMap(_versions_of, _ids(sampled, "sampled"), target=target)
            | "Version to look at" >> beam.CombinePerKey(_last_searchable)
            | "Drop keys" >> beam.Values()
            | "Items" >> LoadPhotos(attrgetter("image_uri"), self._images, rules.image_side)
        )
        groups = AsDict(shown.usable | "Groups" >> beam.MapTuple(lambda item, _: (item.item_id, rules.group(item))))
        complete = queries.usable | "Complete" >> beam.ParDo(KeepSessionsWithPhotos(), groups).with_outputs(
            "left_out", main="sessions"
        )
        kept = complete.sessions | "Kept" >> beam.Keys()
        tapped = kept | "Tapped groups" >> beam.FlatMap(_tapped_groups, groups) | "Tapped once" >> _DistinctKeys()
        trained_on = (
            hashed
            | "Trained on" >> beam.Filter(_is_trained_on, AsDict(twins), AsDict(tapped))
            | "Their groups" >> beam.Map(attrgetter("group"))
            | "Trained on once" >> _DistinctKeys()
        )
        rows = complete.sessions | "Rows" >> beam.Map(_session_row, groups, AsDict(trained_on))
        items = shown.usable | "Shown by kept" >> beam.FlatMap(_item_row, _ids(kept, "kept"))
        files = (
            rows | WriteRecords(target, PAIR_SESSIONS, PAIR_SESSION_SCHEMA, PAIRS_PER_GROUP),
            items | WriteRecords(target, SESSION_ITEMS, SESSION_ITEM_SCHEMA, PAIRS_PER_GROUP),
        ) | "Files" >> beam.Flatten()
        left_out = (
            usable.left_out,
            queries.unusable | "Unreadable" >> beam.Map(lambda _: "query_unreadable"),
            complete.left_out,
        ) | "Left out" >> beam.Flatten()
        counts = (
            count_as(sessions, "sessions_read"),
            left_out | "Why" >> beam.Map(lambda reason: (f"sessions_{reason}", 1)),
            count_as(usable.sound, "sessions_sound"),
            count_as(sampled, "sessions_drawn"),
            count_as(split.others, "sessions_not_drawn"),
            count_as(rows, "sessions"),
            count_as(rows | "Unseen" >> beam.Filter(lambda row: row["unseen"]), "sessions_unseen"),
            count_as(items, "session_items"),
        ) | "Counts" >> beam.Flatten()
        return files, counts


class KeepUsableSessions(beam.DoFn):
    """Sessions → those usable to evaluate rankings; `left_out`: the reason for each of the others."""

    def process(self, session: Session) -> Iterator[Session | TaggedOutput]:
        if not session.sound:
            yield TaggedOutput("left_out", "malformed")
        elif not any(session.tapped):
            yield TaggedOutput("left_out", "nothing_tapped")
        elif session.query.kind is not QueryKind.PHOTO:
            # What encoders are compared by is the photo alone.
            yield TaggedOutput("left_out", "not_by_one_photo")
        else:
            yield session


def _query_photo(session: Session) -> str:
    return session.query.image_uris[0]


def _session_rank(session: Session, rules: Rules) -> tuple[int, str]:
    return sample_number(rules.salt, session.session_id), session.session_id


def _up_to(ranked: tuple[tuple[int, str], Session], last: tuple[int, str]) -> Iterator[Session | TaggedOutput]:
    rank, session = ranked
    yield session if rank <= last else TaggedOutput("others", session.session_id)


class KeepSessionsWithPhotos(beam.DoFn):
    """(session, photo) → those whose shown items all have photos; `left_out`: the reason for each of the others."""

    def process(
        self, asked: tuple[Session, StoredPhoto], readable: Mapping[str, str]
    ) -> Iterator[tuple[Session, StoredPhoto] | TaggedOutput]:
        complete = all(item_id in readable for item_id in asked[0].shown)
        yield asked if complete else TaggedOutput("left_out", "item_unreadable")


class _DistinctKeys(beam.PTransform):
    """Strings → each distinct string once, as a key."""

    def expand(self, texts: beam.PCollection[str]) -> beam.PCollection[tuple[str, None]]:
        return texts | beam.Distinct() | beam.Map(lambda text: (text, None))


def _ids(sessions: beam.PCollection[Session], label: str) -> AsDict:
    """The ids of all items that sessions showed, as a side input."""
    return AsDict(
        sessions | f"Ids {label}" >> beam.FlatMap(attrgetter("shown")) | f"Each once {label}" >> _DistinctKeys()
    )


def _versions_of(landed: Landed, wanted: Mapping[str, None], target: WindowTarget) -> Iterator[tuple[str, Listing]]:
    until = Window(min(landed.window.start, target.window.start), target.window.end)
    for listing in landed_listings(target.lake, landed, until):
        # Invalid rows are counted when the windows of listings are embedded.
        if isinstance(listing, Listing) and listing.item_id in wanted:
            yield listing.item_id, listing


def _last_searchable(versions: Iterable[Listing]) -> Listing:
    """The newest searchable version; the newest version of all if none is searchable."""
    known = list(versions)
    return max([version for version in known if version.searchable] or known, key=by_version)


def _tapped_groups(session: Session, groups: Mapping[str, str]) -> list[str]:
    return [groups[item_id] for item_id, tapped in zip(session.shown, session.tapped, strict=True) if tapped]


def _is_trained_on(pair: HashedPair, dropped: Mapping[str, str], wanted: Mapping[str, None]) -> bool:
    return pair.split == "train" and pair.group in wanted and pair.item_id not in dropped


def _session_row(
    asked: tuple[Session, StoredPhoto], groups: Mapping[str, str], trained_on: Mapping[str, None]
) -> dict[str, object]:
    session, photo = asked
    return {
        "session_id": session.session_id,
        "image": photo.jpeg,
        "shown": list(session.shown),
        "tapped": list(session.tapped),
        "unseen": not any(group in trained_on for group in _tapped_groups(session, groups)),
    }


def _item_row(pictured: tuple[Listing, StoredPhoto], wanted: Mapping[str, None]) -> Iterator[dict[str, object]]:
    listing, photo = pictured
    if listing.item_id in wanted:
        yield {"item_id": listing.item_id, "image": photo.jpeg}
