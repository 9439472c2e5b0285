"""Sample image–title pairs for fine-tuning: listings of a window → drawn, decoded, freed of twins → shards in the lake.

A listing version counts if it is or was for sale to anybody (`on_sale`, `sold`) and its title is no message to a buyer;
the newest such version of an item is the candidate, so an item that was reserved later is learnt from as it was before.
The draw follows from a hash of the item: a rerun gives the same sample, and a larger one contains the smaller. Only what
is drawn is fetched. Everything that is not in the sample is counted by the rule that left it out.

Search sessions of the window, with the photos of what they showed, come along to validate and compare encoders on.

The shards are Parquet, as everything in the lake: its readers stream a row group at a time, prune columns and seek to
where a resumed training stopped, and need nothing but pyarrow. WebDataset's tar files hold the same bytes but no schema,
no counts and no way to skip; MDS needs a reader and a cache of its own. A row's shard and its place there follow from a
hash, so that each shard is a random sample, and training need shuffle no further than its buffer.

What is shuffled is held by the runner: the local one keeps it in memory, some 40 KB a pair at 288 pixels.

    python -m beam_jobs.sample_pairs --name autumn --window_start 2026-08-01T00:00:00Z --window_end 2026-11-01T00:00:00Z
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsDict, AsList, AsSingleton, DoOutputsTuple, TaggedOutput

from beam_jobs.image_loader import ImageLoader, Unusable
from beam_jobs.lake_io import (
    WindowFile,
    WindowTarget,
    WriteRecords,
    commit,
    listings_in,
    require_few_dead_letters,
    sessions_in,
)
from beam_jobs.launcher import add_window, launch, parser, pipeline_options
from listing_lens import progress
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.pairs import (
    PAIR_SCHEMA,
    PAIR_SESSION_SCHEMA,
    PAIR_SESSIONS,
    ROWS_PER_GROUP,
    SESSION_ITEM_SCHEMA,
    SESSION_ITEMS,
    TRAIN,
    VALIDATION,
    fingerprint,
    pair_content,
    pairs,
)
from listing_lens.lake.records import DEAD_LETTER_SCHEMA, DeadLetter, Listing, Session, Status, newest
from listing_lens.lake.window import Window
from listing_lens.lake.windows import DEAD_LETTERS, LISTINGS, SESSIONS, Lake, Manifest
from listing_lens.settings import load_settings
from models.images import ImageError
from models.pairs.perceptual_hash import bands, near_before
from models.pairs.photos import as_jpeg
from models.pairs.split import Split, split_of
from models.pairs.titles import is_message
from models.sampling import SampledBins, bin_of, lowest_bins, sample_number, water_fill

logger = logging.getLogger(__name__)

# Why a listing version is no candidate.
LEFT_OUT = ("left_out_reserved", "left_out_deleted", "left_out_message")
# Why a pair that was drawn and decoded is not in the sample.
TWINS = ("near_duplicate", "twin_across_split")
# Why a session is not in the sample.
SESSION_LEFT_OUT = ("malformed", "nothing_tapped", "query_unreadable", "item_unreadable")

# A stratum of a balanced draw: so many levels of the category.
_STRATUM_LEVELS = 2
_IMAGES_AT_A_TIME = 32
# A shard of some 128 MB is worth a request, and a worker can hold it to put it in order.
_SHARD_BYTES = 128 * 2**20
# Of a photo of 4:3, as a JPEG of quality 95, per pixel of the shorter side squared.
_BYTES_PER_SQUARE = 0.45 * 4 / 3
# Several files also of a small sample, so that several processes can share it.
_FEWEST_SHARDS = 8
_NAMED_REASONS = 3


@dataclass(frozen=True)
class Rules:
    """What decides a sample of a given window; the manifest keeps it."""

    pairs: int
    sessions: int
    validation_share: float
    split_by: str
    balance: bool
    max_per_image: int
    image_side: int
    salt: str

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("sessions", 0), ("max_per_image", 1), ("image_side", 8)):
            if getattr(self, name) < least:
                raise LensError(f"--{name} is {getattr(self, name)}: give {least} or more")
        if not 0 < self.validation_share < 1:
            raise LensError(f"--validation_share is {self.validation_share}: give a share between 0 and 1")

    def stratum(self, listing: Listing) -> str:
        """What a listing is drawn among."""
        return " > ".join(listing.category[:_STRATUM_LEVELS]) if self.balance else "all"

    def group(self, listing: Listing) -> str:
        """What is never on both sides of the split; a listing that names none is a group of its own."""
        code = listing.product_id if self.split_by == "product" else listing.seller_id
        return f"{self.split_by} {code}" if code else f"item {listing.item_id}"

    def split(self, listing: Listing) -> Split:
        """Which part a listing belongs to."""
        return split_of(self.salt, self.group(listing), self.validation_share)


@dataclass(frozen=True)
class Config:
    """One run: what to sample by which rules, from and to which lake."""

    lake: Lake
    name: str
    window: Window
    rules: Rules
    images: ImageSource
    max_dead_letter_ratio: float
    # Windows of listings and of sessions that cover the run's window, and those in which shown items are looked up.
    landed: tuple[Window, ...]
    landed_sessions: tuple[Window, ...]
    catalog: tuple[Window, ...]

    def new_target(self) -> WindowTarget:
        """The sample to write, as a new attempt."""
        return WindowTarget(self.lake, pairs(self.name), self.window)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A listing of the draw. Of two, the one of the lower `rank` is also in every smaller draw that has the other."""

    listing: Listing
    rank: tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it is stored, and its perceptual hash."""

    jpeg: bytes
    image_hash: int


@dataclass(frozen=True, slots=True)
class Sign:
    """What twins are found by: a drawn pair without its image."""

    item_id: str
    rank: tuple[int, int, str]
    split: Split
    group: str
    image_hash: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of pairs: what it is, how many it holds, and their part of the fingerprint."""

    kind: str
    name: str
    rows: int
    content: int


def run(landed: beam.PCollection, config: Config) -> beam.PCollection:
    """Windows of listings that have landed → the manifest of the sample."""
    target, rules = config.new_target(), config.rules
    versions = (
        landed
        | "Spread windows" >> beam.Reshuffle()
        | "Read listings" >> beam.FlatMap(lambda part: listings_in(config.lake, part, config.window))
    )
    judged = versions | "Judge" >> beam.ParDo(Judge()).with_outputs("left_out", main="eligible")
    candidates = (
        judged.eligible
        | "Key by item" >> beam.WithKeys(lambda listing: listing.item_id)
        | "Keep the newest" >> beam.CombinePerKey(newest)
        | "Drop keys" >> beam.Values()
    )
    drawn = candidates | "Draw" >> Draw(rules)
    pictured = drawn | "Images" >> TakeIn(config, "listing.image_uri")
    dead = pictured.unusable | "Dead letters" >> beam.MapTuple(
        lambda one, why: DeadLetter(one.listing.item_id, why.stage, why.reason)
    )
    signs = pictured.usable | "Signs" >> beam.Map(_sign, rules=rules)
    twins = signs | "Find twins" >> FindTwins(rules.max_per_image)
    count = drawn | "How many drawn" >> beam.combiners.Count.Globally()
    shards = (
        pictured.usable
        | "Choose shard" >> beam.Map(_by_shard, AsSingleton(count), rules=rules)
        | "Gather shards" >> beam.GroupByKey()
        | "Write shards" >> beam.FlatMap(_write_shard, AsDict(twins), target=target)
    )
    session_files, session_counts = (signs, twins) | "Sample sessions" >> SampleSessions(config, target)
    files = (
        shards | "Shard names" >> beam.Map(lambda shard: (shard.kind, shard.name)),
        dead | WriteRecords(target, DEAD_LETTERS, DEAD_LETTER_SCHEMA),
        session_files,
    ) | "All files" >> beam.Flatten()
    counts = (
        (
            _count(versions, "read"),
            judged.left_out | "Why left out" >> beam.Map(lambda reason: (reason, 1)),
            _count(judged.eligible, "eligible"),
            _count(candidates, "candidates"),
            _count(drawn, "drawn"),
            _count(dead, "dead_lettered"),
            twins | "Why dropped" >> beam.MapTuple(lambda _, reason: (reason, 1)),
            shards | "Pairs" >> beam.Map(lambda shard: (shard.kind, shard.rows)),
            session_counts,
        )
        | "All counts" >> beam.Flatten()
        | "Sum" >> beam.CombinePerKey(sum)
    )
    reasons = (
        dead
        | "Reasons" >> beam.Map(lambda letter: letter.reason)
        | "Count reasons" >> beam.combiners.Count.PerElement()
        | "Most common" >> beam.combiners.Top.Of(_NAMED_REASONS, key=lambda counted: counted[1])
    )
    content = shards | "Contents" >> beam.Map(lambda shard: shard.content)
    return (
        landed.pipeline
        | "Finish" >> beam.Create([None])
        | "Check and commit"
        >> beam.Map(
            _check_and_commit,
            AsList(files),
            AsDict(counts),
            AsSingleton(reasons),
            AsList(content),
            config=config,
            target=target,
        )
    )


# ---- which listings --------------------------------------------------------------------------------------------------


class Judge(beam.DoFn):
    """Listing versions → those that can be learnt from; the rule that left it out for each of the others."""

    def process(self, listing: Listing) -> Iterator[Listing | TaggedOutput]:
        if listing.status in (Status.RESERVED, Status.DELETED):
            yield TaggedOutput("left_out", f"left_out_{listing.status}")
        elif is_message(listing.title):
            yield TaggedOutput("left_out", "left_out_message")
        else:
            yield listing


class Draw(beam.PTransform):
    """Candidates, each item once → those that are drawn: of each stratum its lowest draw numbers, up to the quota.

    The quota is the same for all strata and as large as the number of pairs allows; a stratum with fewer items gives them
    all. Numbers are counted by bins, so that no worker holds a stratum's ids; a stratum falls short of its quota by less
    than a bin, which is one item in small samples and about one in 10,000 in large ones.
    """

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def expand(self, candidates: beam.PCollection) -> beam.PCollection:
        rules = self._rules
        strata = (
            candidates
            | "Bins" >> beam.Map(_bin, rules=rules)
            | "Count bins" >> beam.combiners.Count.PerElement()
            | "By stratum" >> beam.MapTuple(lambda key, count: (key[0], (key[1], count)))
            | "Strata" >> beam.GroupByKey()
            | "As counts" >> beam.MapTuple(lambda stratum, counts: (stratum, dict(counts)))
        )
        sizes = strata | "Sizes" >> beam.MapTuple(lambda _, counts: sum(counts.values()))
        quota = (
            candidates.pipeline
            | "Once" >> beam.Create([None])
            | "Quota" >> beam.Map(lambda _, sizes: water_fill(sizes, rules.pairs), AsList(sizes))
        )
        taken = strata | "Take" >> beam.Map(
            lambda stratum, quota: (stratum[0], lowest_bins(stratum[1], quota)), AsSingleton(quota)
        )
        return candidates | "Drawn" >> beam.FlatMap(_draw, AsDict(taken), rules=rules)


def _bin(listing: Listing, rules: Rules) -> tuple[str, int]:
    return rules.stratum(listing), bin_of(sample_number(rules.salt, listing.item_id))


def _draw(listing: Listing, taken: Mapping[str, SampledBins], rules: Rules) -> Iterator[Drawn]:
    number = sample_number(rules.salt, listing.item_id)
    turn = taken[rules.stratum(listing)].turn(number)
    if turn is not None:
        yield Drawn(listing, (turn, number, listing.item_id))


# ---- images ----------------------------------------------------------------------------------------------------------


class TakeIn(beam.PTransform):
    """Elements with the address of an image in an attribute → `usable`: (element, `Picture`); `unusable`: (element, why)."""

    def __init__(self, config: Config, uri: str) -> None:
        super().__init__()
        self._config = config
        self._uri = uri

    def expand(self, elements: beam.PCollection) -> DoOutputsTuple:
        return (
            elements
            | "Spread" >> beam.Reshuffle()
            | "Batch" >> beam.BatchElements(_IMAGES_AT_A_TIME, _IMAGES_AT_A_TIME)
            | "Take in" >> beam.ParDo(TakeInBatch(self._config, self._uri)).with_outputs("unusable", main="usable")
        )


class TakeInBatch(beam.DoFn):
    """Fetch, decode and scale a batch of images, each by itself."""

    def __init__(self, config: Config, uri: str) -> None:
        self._config = config
        self._uri_of = attrgetter(uri)

    def setup(self) -> None:
        self._loader = ImageLoader(self._config.images, self._config.rules.image_side)

    def process(self, elements: Sequence[Any]) -> Iterator[tuple[Any, Picture] | TaggedOutput]:
        for element, image in zip(elements, self._loader.load([self._uri_of(x) for x in elements]), strict=True):
            if isinstance(image, Unusable):
                yield TaggedOutput("unusable", (element, image))
                continue
            try:
                yield element, Picture(*as_jpeg(image, self._config.rules.image_side))
            except ImageError as err:
                yield TaggedOutput("unusable", (element, Unusable("scale", str(err))))
        progress.advance("images taken in", len(elements))


def _sign(pictured: tuple[Drawn, Picture], rules: Rules) -> Sign:
    drawn, picture = pictured
    listing = drawn.listing
    return Sign(listing.item_id, drawn.rank, rules.split(listing), rules.group(listing), picture.image_hash)


class FindTwins(beam.PTransform):
    """Signs → (item_id, reason) of the pairs that are to be dropped.

    A pair is a near-duplicate when at least `most` pairs of lower rank look like it. It is a twin across the split when
    any of lower rank does that is in the other part. Since only lower ranks count, whether dropped themselves or not, the
    outcome depends on no order, and a larger sample drops nothing that a smaller one keeps.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def expand(self, signs: beam.PCollection) -> beam.PCollection:
        alike = (
            signs
            | "By hash" >> beam.WithKeys(lambda sign: sign.image_hash)
            | "Same hash" >> beam.GroupByKey()
            | "Keep the first" >> beam.ParDo(KeepFirst(self._most)).with_outputs("dropped", main="firsts")
        )
        near = (
            alike.firsts
            | "By band" >> beam.FlatMap(lambda sign: [(band, sign) for band in bands(sign.image_hash)])
            | "Same band" >> beam.GroupByKey()
            | "Compare" >> beam.FlatMap(_near, most=self._most)
            | "By item" >> beam.GroupByKey()
            | "Decide" >> beam.FlatMap(_decide, most=self._most)
        )
        return (alike.dropped, near) | "Dropped" >> beam.Flatten()


class KeepFirst(beam.DoFn):
    """Signs of one hash → the first `most`, which is all that others can be dropped for; of the rest, that they are."""

    def __init__(self, most: int) -> None:
        self._most = most

    def process(self, group: tuple[int, Iterable[Sign]]) -> Iterator[Sign | TaggedOutput]:
        _, signs = group
        firsts = heapq.nsmallest(self._most, signs, key=attrgetter("rank"))
        yield from firsts
        for sign in signs:
            if sign.rank > firsts[-1].rank:
                yield TaggedOutput("dropped", (sign.item_id, "near_duplicate"))


def _near(group: tuple[int, Iterable[Sign]], most: int) -> Iterator[tuple[str, tuple[set[str], bool]]]:
    """Of a band's signs, (item_id, (up to `most` pairs of lower rank that look like it, any in the other part))."""
    signs = sorted(group[1], key=attrgetter("rank"))
    hashes = np.array([sign.image_hash for sign in signs], np.uint64)
    for sign, places in zip(signs, near_before(hashes), strict=True):
        if len(places):
            earlier = [signs[place] for place in places]
            across = any(other.split != sign.split for other in earlier)
            yield sign.item_id, ({other.item_id for other in earlier[:most]}, across)


def _decide(group: tuple[str, Iterable[tuple[set[str], bool]]], most: int) -> Iterator[tuple[str, str]]:
    item_id, found = group[0], list(group[1])
    if len(set().union(*(ids for ids, _ in found))) >= most:
        yield item_id, "near_duplicate"
    elif any(across for _, across in found):
        yield item_id, "twin_across_split"


# ---- shards ----------------------------------------------------------------------------------------------------------


def _by_shard(
    pictured: tuple[Drawn, Picture], drawn: int, rules: Rules
) -> tuple[tuple[str, int], tuple[int, dict[str, object]]]:
    """((split, shard), (place, row)); the place orders a shard."""
    listing, picture = pictured[0].listing, pictured[1]
    kind = TRAIN if rules.split(listing) == "train" else VALIDATION
    share = rules.validation_share if kind == VALIDATION else 1 - rules.validation_share
    # Another hash than the draw's, by whose numbers a balanced draw has its small strata last.
    place = sample_number(f"{rules.salt}\0place", listing.item_id)
    row: dict[str, object] = {
        "item_id": listing.item_id,
        "title": listing.title,
        "category": list(listing.category),
        "product_id": listing.product_id,
        "image": picture.jpeg,
    }
    return (kind, place % shard_count(round(drawn * share), rules.image_side)), (place, row)


def shard_count(rows: int, image_side: int) -> int:
    """How many files so many pairs are spread over: of about 128 MB, or fewer rows where that leaves fewer than 8 files."""
    by_bytes = rows * image_side**2 * _BYTES_PER_SQUARE / _SHARD_BYTES
    return max(1, round(by_bytes), min(_FEWEST_SHARDS, rows // ROWS_PER_GROUP))


def _write_shard(
    group: tuple[tuple[str, int], Iterable[tuple[int, dict[str, Any]]]],
    dropped: Mapping[str, str],
    target: WindowTarget,
) -> Iterator[Shard]:
    """Write what is left of a shard, in its order; nothing when nothing is."""
    (kind, number), placed = group
    left = sorted(((place, row) for place, row in placed if row["item_id"] not in dropped), key=_place_and_item)
    rows = [row for _, row in left]
    if not rows:
        return
    file = WindowFile(target, f"{kind}-{number:05d}", PAIR_SCHEMA, ROWS_PER_GROUP)
    for start in range(0, len(rows), ROWS_PER_GROUP):
        file.write(pa.Table.from_pylist(rows[start : start + ROWS_PER_GROUP], PAIR_SCHEMA))
    file.close()
    content = sum(pair_content(kind, row["item_id"], row["title"], row["image"]) for row in rows)
    yield Shard(kind, file.name, len(rows), content)


def _place_and_item(placed: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    return placed[0], placed[1]["item_id"]


# ---- sessions --------------------------------------------------------------------------------------------------------


class SampleSessions(beam.PTransform):
    """The drawn pairs' signs, and which pairs are dropped → the files of sessions and their items, and what was counted.

    As many sessions as are asked for are drawn by a hash of their ids, and only the ids of what those showed go to every
    worker, so that of the catalog no more than these items is shuffled.
    """

    def __init__(self, config: Config, target: WindowTarget) -> None:
        super().__init__()
        self._config = config
        self._target = target

    def expand(self, pcolls: tuple[beam.PCollection, beam.PCollection]) -> tuple[beam.PCollection, beam.PCollection]:
        signs, twins = pcolls
        config, rules, pipeline = self._config, self._config.rules, signs.pipeline
        sessions = (
            pipeline
            | "Session windows" >> beam.Create(config.landed_sessions)
            | "Spread windows" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(lambda part: sessions_in(config.lake, part, config.window))
        )
        judged = sessions | "Judge" >> beam.ParDo(JudgeSession()).with_outputs("left_out", main="sound")
        drawn = (
            judged.sound
            | "Draw" >> beam.combiners.Top.Smallest(rules.sessions, key=lambda session: _session_rank(session, rules))
            | "Each" >> beam.FlatMap(lambda lowest: lowest)
        )
        asked = drawn | "Queries" >> TakeIn(config, "query_image_uri")
        shown = (
            pipeline
            | "Catalog windows" >> beam.Create(config.catalog)
            | "Spread catalog windows" >> beam.Reshuffle()
            | "Shown ones" >> beam.FlatMap(_versions_of, _ids(drawn, "drawn"), config=config)
            | "Version to look at" >> beam.CombinePerKey(_last_seen)
            | "Drop keys" >> beam.Values()
            | "Items" >> TakeIn(config, "image_uri")
        )
        groups = AsDict(shown.usable | "Groups" >> beam.MapTuple(lambda item, _: (item.item_id, rules.group(item))))
        complete = asked.usable | "Complete" >> beam.ParDo(Complete(), groups).with_outputs("left_out", main="sessions")
        kept = complete.sessions | "Kept" >> beam.Keys()
        tapped = kept | "Tapped groups" >> beam.FlatMap(_tapped_groups, groups) | "Tapped once" >> _Once()
        trained_on = (
            signs
            | "Trained on" >> beam.Filter(_is_trained_on, AsDict(twins), AsDict(tapped))
            | "Their groups" >> beam.Map(attrgetter("group"))
            | "Trained on once" >> _Once()
        )
        rows = complete.sessions | "Rows" >> beam.Map(_session_row, groups, AsDict(trained_on))
        items = shown.usable | "Shown by kept" >> beam.FlatMap(_item_row, _ids(kept, "kept"))
        files = (
            rows | WriteRecords(self._target, PAIR_SESSIONS, PAIR_SESSION_SCHEMA, ROWS_PER_GROUP),
            items | WriteRecords(self._target, SESSION_ITEMS, SESSION_ITEM_SCHEMA, ROWS_PER_GROUP),
        ) | "Files" >> beam.Flatten()
        left_out = (
            judged.left_out,
            asked.unusable | "Unreadable" >> beam.Map(lambda _: "query_unreadable"),
            complete.left_out,
        ) | "Left out" >> beam.Flatten()
        counts = (
            _count(sessions, "sessions_read"),
            left_out | "Why" >> beam.Map(lambda reason: (f"sessions_{reason}", 1)),
            _count(judged.sound, "sessions_sound"),
            _count(drawn, "sessions_drawn"),
            _count(rows, "sessions"),
            _count(rows | "Unseen" >> beam.Filter(lambda row: row["unseen"]), "sessions_unseen"),
            _count(items, "session_items"),
        ) | "Counts" >> beam.Flatten()
        return files, counts


class JudgeSession(beam.DoFn):
    """Sessions → those that a ranking can be judged by; the reason for each of the others."""

    def process(self, session: Session) -> Iterator[Session | TaggedOutput]:
        if not session.sound:
            yield TaggedOutput("left_out", "malformed")
        elif not any(session.tapped):
            yield TaggedOutput("left_out", "nothing_tapped")
        else:
            yield session


def _session_rank(session: Session, rules: Rules) -> tuple[int, str]:
    return sample_number(rules.salt, session.session_id), session.session_id


class Complete(beam.DoFn):
    """(session, photo) → the same when every item that was shown has a photo; the reason otherwise."""

    def process(
        self, asked: tuple[Session, Picture], readable: Mapping[str, str]
    ) -> Iterator[tuple[Session, Picture] | TaggedOutput]:
        complete = all(item_id in readable for item_id in asked[0].shown)
        yield asked if complete else TaggedOutput("left_out", "item_unreadable")


class _Once(beam.PTransform):
    """Texts → each of them once, as a key."""

    def expand(self, texts: beam.PCollection) -> beam.PCollection:
        return texts | beam.Distinct() | beam.Map(lambda text: (text, None))


def _ids(sessions: beam.PCollection, label: str) -> AsDict:
    """The ids of all items that sessions showed, for every worker."""
    return AsDict(sessions | f"Ids {label}" >> beam.FlatMap(attrgetter("shown")) | f"Each once {label}" >> _Once())


def _versions_of(landed: Window, wanted: Mapping[str, None], config: Config) -> Iterator[tuple[str, Listing]]:
    until = Window(min(landed.start, config.window.start), config.window.end)
    for listing in listings_in(config.lake, landed, until):
        if listing.item_id in wanted:
            yield listing.item_id, listing


def _last_seen(versions: Iterable[Listing]) -> Listing:
    """The newest version that could be found by searching; the newest of all when none could."""
    known = list(versions)
    return newest([version for version in known if version.searchable] or known)


def _tapped_groups(session: Session, groups: Mapping[str, str]) -> list[str]:
    return [groups[item_id] for item_id, tapped in zip(session.shown, session.tapped, strict=True) if tapped]


def _is_trained_on(sign: Sign, dropped: Mapping[str, str], wanted: Mapping[str, None]) -> bool:
    return sign.split == "train" and sign.group in wanted and sign.item_id not in dropped


def _session_row(
    asked: tuple[Session, Picture], groups: Mapping[str, str], trained_on: Mapping[str, None]
) -> dict[str, object]:
    session, picture = asked
    return {
        "session_id": session.session_id,
        "image": picture.jpeg,
        "shown": list(session.shown),
        "tapped": list(session.tapped),
        "unseen": not any(group in trained_on for group in _tapped_groups(session, groups)),
    }


def _item_row(pictured: tuple[Listing, Picture], wanted: Mapping[str, None]) -> Iterator[dict[str, object]]:
    listing, picture = pictured
    if listing.item_id in wanted:
        yield {"item_id": listing.item_id, "image": picture.jpeg}


# ---- the end ---------------------------------------------------------------------------------------------------------


def _count(elements: beam.PCollection, name: str) -> beam.PCollection:
    return elements | f"Count {name}" >> beam.Map(lambda _: (name, 1))


def _check_and_commit(
    _: None,
    files: list[tuple[str, str]],
    found: dict[str, int],
    reasons: list[tuple[str, int]],
    contents: list[int],
    *,
    config: Config,
    target: WindowTarget,
) -> Manifest:
    """Commit the sample unless something went missing, too much was set aside, or a part of it is empty."""
    counts = _accounted(found, config)
    tried = counts["drawn"]
    require_few_dead_letters(config.window, counts["dead_lettered"], tried, reasons, config.max_dead_letter_ratio)
    for kind in (TRAIN, VALIDATION):
        if not counts[kind]:
            raise LensError(
                f"no {kind} pair is left of {config.window} ({counts}): choose a window with more listings, "
                "or other --pairs and --validation_share"
            )
    parameters = vars(config.rules) | {"fingerprint": fingerprint(contents)}
    manifest = commit(target, files, counts, parameters)
    logger.info("%s of %s is complete, %s: %s", target.dataset, config.window, parameters["fingerprint"], counts)
    return manifest


def _accounted(found: dict[str, int], config: Config) -> dict[str, int]:
    """All counts, those of what was left behind included. Raises LensError when they do not add up."""
    session_reasons = [f"sessions_{reason}" for reason in SESSION_LEFT_OUT]
    stages = (
        ("read", (*LEFT_OUT, "eligible")),
        ("eligible", ("superseded", "candidates")),
        ("candidates", ("not_drawn", "drawn")),
        ("drawn", ("dead_lettered", *TWINS, TRAIN, VALIDATION)),
        ("sessions_read", (*session_reasons[:2], "sessions_sound")),
        ("sessions_sound", ("sessions_not_drawn", "sessions_drawn")),
        ("sessions_drawn", (*session_reasons[2:], "sessions")),
    )
    names = [name for whole, parts in stages for name in (whole, *parts)]
    counts = dict.fromkeys([*names, "sessions_unseen", "session_items"], 0) | found
    # What these three leave behind is not counted one by one.
    counts["superseded"] = counts["eligible"] - counts["candidates"]
    counts["not_drawn"] = counts["candidates"] - counts["drawn"]
    counts["sessions_not_drawn"] = counts["sessions_sound"] - counts["sessions_drawn"]
    for whole, parts in stages:
        if counts[whole] != sum(counts[part] for part in parts) or min(counts[part] for part in parts) < 0:
            raise LensError(
                f"pairs {config.name}: {counts[whole]} went in as {whole}, "
                f"{sum(counts[part] for part in parts)} came out: {counts}"
            )
    return counts


def configure(name: str, window: Window, rules: Rules) -> Config:
    """Check what the sample depends on, before anything is read.

    Raises:
        LensError: the name is none, or that of a sample of another window; listings of the window have not landed, or
            sessions when some are asked for; the lake is out of reach.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    others = [other for other in lake.windows(pairs(name)) if other != window]
    if others:
        raise LensError(f"{pairs(name)} is a sample of {others[0]} already: choose another --name for {window}")
    landed = lake.covering(LISTINGS, window)
    landed_sessions = _covering_sessions(lake, window) if rules.sessions else []
    catalog = [part for part in lake.windows(LISTINGS) if part.start < window.end] if rules.sessions else []
    roots = lake.image_roots(LISTINGS, {*landed, *catalog}) + lake.image_roots(SESSIONS, landed_sessions)
    return Config(
        lake=lake,
        name=name,
        window=window,
        rules=rules,
        images=ImageSource.of(settings).allowing(roots),
        max_dead_letter_ratio=settings.max_dead_letter_ratio,
        landed=tuple(landed),
        landed_sessions=tuple(landed_sessions),
        catalog=tuple(catalog),
    )


def _covering_sessions(lake: Lake, window: Window) -> list[Window]:
    try:
        return lake.covering(SESSIONS, window)
    except LensError as err:
        raise LensError(f"{err}; or give --sessions 0 to validate on pairs alone") from err


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    arguments.add_argument("--name", required=True, help="what the sample is known by: pairs/NAME in the lake")
    add_window(arguments, required=True)
    arguments.add_argument("--pairs", type=int, default=1_000_000, help="pairs to draw, validation included")
    arguments.add_argument(
        "--sessions", type=int, default=2_000, help="search sessions to draw; 0 needs none to have landed"
    )
    arguments.add_argument("--validation_share", type=float, default=0.1, help="share of the products that validates")
    arguments.add_argument(
        "--split_by",
        choices=("product", "seller"),
        default="product",
        help="what training and validation have none in common of; listings that name none are split one by one",
    )
    arguments.add_argument(
        "--balance", action="store_true", help="draw as evenly as can be from the categories' top two levels"
    )
    arguments.add_argument("--max_per_image", type=int, default=1, help="pairs of (nearly) the same image to keep")
    arguments.add_argument("--image_side", type=int, default=288, help="pixels that a shorter side is scaled down to")
    arguments.add_argument("--salt", default="pairs", help="another one draws, and splits, another sample")
    known, beam_arguments = arguments.parse_known_args(argv)
    options = vars(known)
    name, window = options.pop("name"), Window.parse(options.pop("window_start"), options.pop("window_end"))
    config = configure(name, window, Rules(**options))
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline | "Landed windows" >> beam.Create(config.landed), config)


if __name__ == "__main__":
    launch(main)
