"""Search sessions to choose a checkpoint by and to report, with the photos of the items they showed.

A session is of the validation or the test part if its time is, and every product that was tapped. So that two parts share no
product, others are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter, itemgetter

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsDict, AsSingleton, TaggedOutput
from numpy.typing import NDArray

from beam_jobs.pairs.counts import UNSEEN
from beam_jobs.pairs.elements import HashedPair, SampledSession, StoredPhoto, tapped_items
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
    PAIRS_PER_GROUP,
    SESSION_ITEM_SCHEMA,
    SESSION_ITEMS,
    TEST_SESSIONS,
    VALIDATION_SESSIONS,
)
from listing_lens.lake.records import Listing, QueryKind, Session, by_version
from listing_lens.lake.window import Window
from models.pairs.perceptual_hash import NEAR_BITS
from models.pairs.split import Split
from models.sampling import sample_number

_KINDS: dict[Split, str] = {"validation": VALIDATION_SESSIONS, "test": TEST_SESSIONS}
# What a session shares with another part: an item, or a photo's hash.
_Mark = tuple[Split, str | int]


class SampleSessions(beam.PTransform):
    """(hashed pairs, dropped pairs) → (files of the sessions and their items, counts, groups of each unseen test session).

    Sessions are sampled by a hash of their ids. Only the ids of the items that the sampled sessions showed are sent to every
    worker, so that only those items of the catalog are shuffled.

    Args:
        rules: how many sessions to sample, how they are split, and the salt.
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
    ) -> tuple[beam.PCollection[tuple[str, str]], beam.PCollection[tuple[str, int]], beam.PCollection[tuple[str, ...]]]:
        hashed, twins = pcolls
        rules, target, pipeline = self._rules, self._target, hashed.pipeline
        sessions = (
            pipeline
            | "Session windows" >> beam.Create(self._landed)
            | "Spread windows" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(lambda part: landed_sessions(target.lake, part, target.window))
        )
        usable = sessions | "Keep usable" >> beam.ParDo(KeepUsableSessions()).with_outputs("left_out", main="sound")
        sampled, not_sampled = usable.sound | "Sample" >> _DrawSessions(rules, target.window)
        shown = (
            pipeline
            | "Catalog windows" >> beam.Create(self._catalog)
            | "Spread catalog windows" >> beam.Reshuffle()
            | "Shown ones" >> beam.FlatMap(_versions_of, _ids(sampled, "sampled", attrgetter("shown")), target=target)
            | "Version to look at" >> beam.CombinePerKey(_last_searchable)
            | "Drop keys" >> beam.Values()
        )
        groups = shown | "Groups" >> beam.FlatMap(_group, _ids(sampled, "tapped", tapped_items), rules=rules)
        of_part = sampled | "Split" >> beam.ParDo(KeepHeldOut(rules, target.window), AsDict(groups)).with_outputs(
            "left_out", main="held_out"
        )
        queries = of_part.held_out | "Queries" >> LoadPhotos(_query_photo, self._images, rules.image_side)
        items = (
            shown
            | "Shown by held out"
            >> beam.Filter(_is_in, _ids(of_part.held_out, "held out", attrgetter("session.shown")))
            | "Items" >> LoadPhotos(attrgetter("image_uri"), self._images, rules.image_side)
        )
        hashes = AsDict(items.usable | "Hashes" >> beam.MapTuple(lambda item, photo: (item.item_id, photo.image_hash)))
        complete = queries.usable | "Complete" >> beam.ParDo(KeepSessionsWithPhotos(), hashes).with_outputs(
            "left_out", main="sessions"
        )
        seen = (complete.sessions, hashed, twins) | "Seen elsewhere" >> _FindSeen(hashes)
        rows = complete.sessions | "Rows" >> beam.Map(_session_row, hashes, seen)
        shown_by_kept = _ids(complete.sessions | "Kept" >> beam.Keys(), "kept", attrgetter("session.shown"))
        item_rows = items.usable | "Shown by kept" >> beam.FlatMap(_item_row, shown_by_kept)
        by_kind = {
            kind: rows | f"Of {kind}" >> beam.FlatMap(lambda row, split=split: [row[1]] if row[0] == split else [])
            for split, kind in _KINDS.items()
        }
        unseen = {kind: some | f"Unseen {kind}" >> beam.Filter(itemgetter("unseen")) for kind, some in by_kind.items()}
        files = (
            *(
                some | WriteRecords(target, kind, PAIR_SESSION_SCHEMA, PAIRS_PER_GROUP)
                for kind, some in by_kind.items()
            ),
            item_rows | WriteRecords(target, SESSION_ITEMS, SESSION_ITEM_SCHEMA, PAIRS_PER_GROUP),
        ) | "Files" >> beam.Flatten()
        left_out = (
            usable.left_out,
            of_part.left_out,
            queries.unusable | "Unreadable" >> beam.Map(lambda _: "query_unreadable"),
            complete.left_out,
        ) | "Left out" >> beam.Flatten()
        counts = (
            count_as(sessions, "sessions_read"),
            left_out | "Why" >> beam.Map(lambda reason: (f"sessions_{reason}", 1)),
            count_as(usable.sound, "sessions_sound"),
            count_as(sampled, "sessions_drawn"),
            count_as(not_sampled, "sessions_not_drawn"),
            *(count_as(some, kind) for kind, some in by_kind.items()),
            *(count_as(some, UNSEEN[kind]) for kind, some in unseen.items()),
            count_as(item_rows, "session_items"),
        ) | "Counts" >> beam.Flatten()
        return files, counts, unseen[TEST_SESSIONS] | "Tested" >> beam.Map(lambda row: tuple(row["groups"]))


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


class _DrawSessions(beam.PTransform):
    """Sessions → (sampled, not sampled): the lowest ranks of each period."""

    def __init__(self, rules: Rules, window: Window) -> None:
        super().__init__()
        self._rules = rules
        self._window = window

    def expand(self, sound: beam.PCollection[Session]) -> tuple[beam.PCollection[Session], beam.PCollection[str]]:
        rules = self._rules
        ranked = sound | "Ranks" >> beam.Map(
            lambda session, window: (rules.period(session, window), _session_rank(session, rules), session),
            self._window,
        )
        lasts = [
            ranked
            | f"Ranks of {period}" >> beam.FlatMap(lambda one, period=period: [one[1]] if one[0] == period else [])
            | f"Lowest of {period}" >> beam.combiners.Top.Smallest(rules.sessions_to_draw(period))
            | f"Last of {period}" >> beam.Map(lambda ranks, period=period: (period, max(ranks, default=())))
            for period in _KINDS
        ]
        split = ranked | "Up to it" >> beam.FlatMap(_up_to, AsDict(lasts | beam.Flatten())).with_outputs(
            "others", main="sampled"
        )
        return split.sampled, split.others


class KeepHeldOut(beam.DoFn):
    """Sessions → those whose tapped products are all of their period's part; `left_out`: the reason for each of the others."""

    def __init__(self, rules: Rules, window: Window) -> None:
        self._rules = rules
        self._window = window

    def process(self, session: Session, groups: Mapping[str, str]) -> Iterator[SampledSession | TaggedOutput]:
        tapped, split = tapped_items(session), self._rules.period(session, self._window)
        if not all(item_id in groups for item_id in tapped):
            yield TaggedOutput("left_out", "item_unreadable")
            return
        found = tuple(dict.fromkeys(groups[item_id] for item_id in tapped))
        if all(self._rules.split_of_group(group) == split for group in found):
            yield SampledSession(session, split, found)
        else:
            yield TaggedOutput("left_out", "not_held_out")


class KeepSessionsWithPhotos(beam.DoFn):
    """(session, photo) → those whose shown items all have photos; `left_out`: the reason for each of the others."""

    def process(
        self, asked: tuple[SampledSession, StoredPhoto], readable: Mapping[str, int]
    ) -> Iterator[tuple[SampledSession, StoredPhoto] | TaggedOutput]:
        complete = all(item_id in readable for item_id in asked[0].session.shown)
        yield asked if complete else TaggedOutput("left_out", "item_unreadable")


class _FindSeen(beam.PTransform):
    """(sessions with photos, hashed pairs, dropped pairs) → the marks of other parts that sessions share, as a side input.

    What is learnt from is the training pairs; what a checkpoint is chosen by, the validation's pairs and sessions. A tapped item
    may be among them in spite of the split, since its title has changed; and a photo may be used for several products.
    """

    def __init__(self, hashes: AsDict) -> None:
        super().__init__()
        self._hashes = hashes

    def expand(
        self,
        pcolls: tuple[
            beam.PCollection[tuple[SampledSession, StoredPhoto]],
            beam.PCollection[HashedPair],
            beam.PCollection[tuple[str, str]],
        ],
    ) -> AsDict:
        sessions, hashed, twins = pcolls
        marks = sessions | "Marks" >> beam.Map(_marks, self._hashes)
        looked_for = (
            marks
            | "Without parts" >> beam.FlatMap(itemgetter(1))
            | "Each once" >> beam.Distinct()
            | "Together" >> beam.combiners.ToList()
            | "As arrays" >> beam.Map(_LookedFor.of)
        )
        chosen_by = marks | "Chosen by" >> beam.FlatMap(
            lambda session: [("validation", mark) for mark in session[1]] if session[0] == "validation" else []
        )
        used = hashed | "Used" >> beam.FlatMap(_used, AsDict(twins))
        found = (
            (used, chosen_by)
            | "All used" >> beam.Flatten()
            | "Alike" >> beam.FlatMap(lambda mark, wanted: wanted.alike(mark), AsSingleton(looked_for))
            | "Each mark once" >> beam.Distinct()
        )
        return AsDict(found | "As keys" >> beam.Map(lambda mark: (mark, None)))


class _LookedFor:
    """The items and photos of sessions, to be found among those of other parts."""

    def __init__(self, items: frozenset[str], hashes: NDArray[np.uint64]) -> None:
        self._items = items
        self._hashes = hashes

    @classmethod
    def of(cls, marks: Iterable[str | int]) -> _LookedFor:
        known = list(marks)
        hashes = np.array([mark for mark in known if isinstance(mark, int)], np.uint64)
        return cls(frozenset(mark for mark in known if isinstance(mark, str)), hashes)

    def alike(self, used: _Mark) -> Iterator[_Mark]:
        """Those that a used item or photo is, or looks like."""
        split, mark = used
        if isinstance(mark, str):
            if mark in self._items:
                yield used
            return
        near = self._hashes[np.bitwise_count(self._hashes ^ np.uint64(mark)) <= NEAR_BITS]
        yield from ((split, image_hash) for image_hash in near.tolist())


class _DistinctKeys(beam.PTransform):
    """Strings → each distinct string once, as a key."""

    def expand(self, texts: beam.PCollection[str]) -> beam.PCollection[tuple[str, None]]:
        return texts | beam.Distinct() | beam.Map(lambda text: (text, None))


def _ids(sessions: beam.PCollection, label: str, of: object) -> AsDict:
    """The ids of items that sessions name, as a side input."""
    return AsDict(sessions | f"Ids {label}" >> beam.FlatMap(of) | f"Each once {label}" >> _DistinctKeys())


def _query_photo(sampled: SampledSession) -> str:
    return sampled.session.query.image_uris[0]


def _session_rank(session: Session, rules: Rules) -> tuple[int, str]:
    return sample_number(rules.salt, session.session_id), session.session_id


def _up_to(
    ranked: tuple[Split, tuple[int, str], Session], lasts: Mapping[str, tuple[int, str]]
) -> Iterator[Session | TaggedOutput]:
    period, rank, session = ranked
    yield session if rank <= lasts[period] else TaggedOutput("others", session.session_id)


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


def _group(listing: Listing, tapped: Mapping[str, None], rules: Rules) -> Iterator[tuple[str, str]]:
    if listing.item_id in tapped:
        yield listing.item_id, rules.group(listing)


def _is_in(listing: Listing, wanted: Mapping[str, None]) -> bool:
    return listing.item_id in wanted


def _marks(asked: tuple[SampledSession, StoredPhoto], hashes: Mapping[str, int]) -> tuple[Split, tuple[str | int, ...]]:
    """A session's part, and by what another part could share it: its photo, the tapped items and theirs."""
    sampled, photo = asked
    tapped = sampled.tapped
    return sampled.split, (photo.image_hash, *tapped, *(hashes[item_id] for item_id in tapped))


def _used(pair: HashedPair, dropped: Mapping[str, str]) -> Iterator[_Mark]:
    if pair.item_id not in dropped:
        yield pair.split, pair.item_id
        yield pair.split, pair.image_hash


def _session_row(
    asked: tuple[SampledSession, StoredPhoto], hashes: Mapping[str, int], seen: Mapping[_Mark, None]
) -> tuple[Split, dict[str, object]]:
    sampled, photo = asked
    split, marks = _marks(asked, hashes)
    others: list[Split] = [part for part in ("train", "validation") if part != split]
    return split, {
        "session_id": sampled.session.session_id,
        "image": photo.jpeg,
        "shown": list(sampled.session.shown),
        "tapped": list(sampled.session.tapped),
        "groups": list(sampled.groups),
        "unseen": not any((other, mark) in seen for other in others for mark in marks),
    }


def _item_row(pictured: tuple[Listing, StoredPhoto], wanted: Mapping[str, None]) -> Iterator[dict[str, object]]:
    listing, photo = pictured
    if listing.item_id in wanted:
        yield {"item_id": listing.item_id, "image": photo.jpeg}
