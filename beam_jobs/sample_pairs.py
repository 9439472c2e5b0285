"""Sample image–title pairs for fine-tuning: listings of a window → sample, decode, deduplicate → shards in the lake.

A listing version is eligible if it is or was for sale to anybody (`on_sale`, `sold`) and its title is not a message to a
buyer; the newest such version of an item is the candidate, so an item that was reserved later is used as it was before.
The sample is determined by a hash of the items: a rerun gives the same sample, and a larger sample contains every smaller
one. Only sampled photos are fetched. Everything that is not in the sample is counted by the rule that excluded it.

Products are split into training, validation and test by a hash, time into what comes before the test period and that itself.
Pairs are of listings before the test period and of products outside the test part: those of the training part are learnt from,
those of the validation part choose the checkpoint. So do sessions before the test period whose tapped products are all of the
validation part. Sessions of the test period whose tapped products are all of the test part are only reported. One is `unseen` if
no photo of it looks like a photo that was learnt from or chosen by. A pair whose photo looks like one across the split is left
out rather than moved: chains of similar photos would join half a catalog.

The sample includes search sessions, with the photos of the shown items, to validate and compare encoders on.
Sessions from the search service's log are left out: their photos are to be forgotten, and the sample would keep copies.

The shards are Parquet, like all datasets in the lake: readers stream one row group at a time, prune columns, seek to where a
resumed training run stopped, and need only pyarrow. WebDataset's tar files hold the same bytes but no schema, no counts
and no way to skip; MDS needs a reader and a cache of its own. A row's shard and its position in it are determined by a
hash, so each shard is a random sample, and shuffling within a buffer suffices for training.

The runner holds the shuffled data: the local one keeps it in memory, about 40 KB per pair at 288 pixels.

    python -m beam_jobs.sample_pairs --name autumn --window_start 2026-08-01T00:00:00Z --window_end 2026-11-01T00:00:00Z
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsSingleton

from beam_jobs.launcher import add_window, launch, parser, pipeline_options
from beam_jobs.pairs.counts import accounted
from beam_jobs.pairs.listings import KeepTrainable, SampleListings
from beam_jobs.pairs.photos import LoadPhotos
from beam_jobs.pairs.rules import Rules
from beam_jobs.pairs.sessions import SampleSessions
from beam_jobs.pairs.shards import by_shard, write_shard
from beam_jobs.pairs.twins import FindTwins, hashed_pair
from beam_jobs.transforms.newest import KeepNewest
from beam_jobs.transforms.windows import (
    CommitWindow,
    Landed,
    MostCommon,
    WindowTarget,
    WriteRecords,
    count_as,
    image_roots,
    landed_listings,
    require_few_dead_letters,
)
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.pairs import TRAIN, VALIDATION, VALIDATION_SESSIONS, fingerprint, pairs
from listing_lens.lake.records import DEAD_LETTER_SCHEMA, DeadLetter, by_version
from listing_lens.lake.searches import is_from_log
from listing_lens.lake.window import Window
from listing_lens.lake.windows import DEAD_LETTERS, LISTINGS, SESSIONS, Lake, Manifest
from listing_lens.settings import load_settings
from models.intervals import clusters_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """One run: what to sample, by which rules, in which lake."""

    lake: Lake
    name: str
    window: Window
    rules: Rules
    images: ImageSource
    max_dead_letter_ratio: float
    # Windows of listings and of sessions that cover the run's window, and those in which shown items are looked up.
    landed: tuple[Landed, ...]
    landed_sessions: tuple[Landed, ...]
    catalog: tuple[Landed, ...]

    def new_target(self) -> WindowTarget:
        """The sample to write, as a new attempt."""
        return WindowTarget(self.lake, pairs(self.name), self.window)


def run(landed: beam.PCollection[Landed], config: Config) -> beam.PCollection[Manifest]:
    """Landed windows of listings → the manifest of the sample."""
    target, rules = config.new_target(), config.rules
    versions = (
        landed
        | "Spread windows" >> beam.Reshuffle()
        | "Read listings" >> beam.FlatMap(lambda part: landed_listings(config.lake, part, config.window))
    )
    test_start = rules.test_start(config.window)
    trainable = versions | "Keep trainable" >> beam.ParDo(KeepTrainable(test_start)).with_outputs(
        "left_out", main="eligible"
    )
    kept = (
        trainable.eligible
        | "Key by item" >> beam.WithKeys(lambda listing: listing.item_id)
        | "Keep the newest" >> beam.CombinePerKey(KeepNewest(by_version, lambda _: "superseded"))
        | "Drop keys" >> beam.Values()
    )
    candidates = kept | "Newest" >> beam.MapTuple(lambda newest, _: newest)
    tested, usable = candidates | "Test products" >> beam.Partition(
        lambda listing, _: int(rules.split(listing) != "test"), 2
    )
    sampled, not_sampled = usable | "Sample" >> SampleListings(rules)
    photos = sampled | "Photos" >> LoadPhotos(attrgetter("listing.image_uri"), config.images, rules.image_side)
    dead = photos.unusable | "Dead letters" >> beam.MapTuple(
        lambda one, why: DeadLetter(one.listing.item_id, why.stage, why.reason)
    )
    hashed = photos.usable | "Hashes" >> beam.Map(hashed_pair, rules=rules)
    twins = hashed | "Find twins" >> FindTwins(rules.max_per_image)
    count = sampled | "How many" >> beam.combiners.Count.Globally()
    shards = (
        photos.usable
        | "Choose shard" >> beam.Map(by_shard, AsSingleton(count), rules=rules)
        | "Gather shards" >> beam.GroupByKey()
        | "Write shards" >> beam.FlatMap(write_shard, AsDict(twins), target=target)
    )
    session_files, session_counts, session_groups = (hashed, twins) | "Sample sessions" >> SampleSessions(
        rules, config.images, landed=config.landed_sessions, catalog=config.catalog, target=target
    )
    files = (
        shards | "Shard names" >> beam.Map(lambda shard: (shard.kind, shard.name)),
        dead | WriteRecords(target, DEAD_LETTERS, DEAD_LETTER_SCHEMA),
        session_files,
    ) | "All files" >> beam.Flatten()
    counts = (
        count_as(versions, "read"),
        trainable.left_out | "Why left out" >> beam.Map(lambda reason: (reason, 1)),
        count_as(trainable.eligible, "eligible"),
        kept | "Older ones" >> beam.FlatMapTuple(lambda _, older: older.items()),
        count_as(candidates, "candidates"),
        count_as(tested, "test_products"),
        count_as(sampled, "drawn"),
        count_as(not_sampled, "not_drawn"),
        count_as(dead, "dead_lettered"),
        twins | "Why dropped" >> beam.MapTuple(lambda _, reason: (reason, 1)),
        shards | "Pairs" >> beam.Map(lambda shard: (shard.kind, shard.rows)),
        session_counts,
    ) | "All counts" >> beam.Flatten()
    found = {
        "files": files,
        "counts": counts,
        "reasons": dead | "Reasons" >> beam.Map(lambda letter: letter.reason) | "Commonest" >> MostCommon(),
        "contents": shards | "Contents" >> beam.Map(lambda shard: shard.content),
        "groups": session_groups,
    }
    return found | "Commit" >> CommitWindow(target, partial(_seal, config=config))


def _seal(
    found: dict[str, int],
    *,
    reasons: list[list[tuple[str, int]]],
    contents: list[int],
    groups: list[tuple[str, ...]],
    config: Config,
) -> tuple[dict[str, int], dict[str, Any]]:
    """Reject a sample in which something went missing, too many listings are dead letters, or a part is empty."""
    counts = accounted(found, config.name)
    [commonest] = reasons
    require_few_dead_letters(
        config.window, counts["dead_lettered"], counts["drawn"], commonest, config.max_dead_letter_ratio
    )
    for kind in (TRAIN, VALIDATION):
        if not counts[kind]:
            raise LensError(
                f"no {kind} pair is left of {config.window} ({counts}): choose a window with more listings, "
                "or other --pairs and --validation_share"
            )
    if config.rules.sessions:
        _require_sessions(counts, groups, config.window)
    parameters = vars(config.rules) | {"fingerprint": fingerprint(contents)}
    logger.info("%s of %s is complete, %s: %s", config.name, config.window, parameters["fingerprint"], counts)
    return counts, parameters


def _require_sessions(counts: dict[str, int], groups: Sequence[Sequence[str]], window: Window) -> None:
    remedy = (
        "choose a window with more sessions, larger --validation_share, --test_share and --test_time, "
        "or --sessions 0 to validate on pairs alone"
    )
    if not counts[VALIDATION_SESSIONS]:
        raise LensError(f"no session of {window} is left to validate on ({counts}): {remedy}")
    if not groups:
        raise LensError(f"no unseen session of {window} is left to test on ({counts}): {remedy}")
    if clusters_of(groups).max() == 0:
        raise LensError(
            f"all {len(groups)} unseen sessions of {window} to test on are of one product, "
            f"which says nothing of others ({counts}): {remedy}"
        )


def configure(name: str, window: Window, rules: Rules) -> Config:
    """Check the sample's dependencies before anything is read.

    Raises:
        LensError: the name is invalid or taken by a sample of another window; the window's listings, or its sessions if any
            are requested, have not landed or are all from the search service's log; or the lake cannot be reached.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    others = [other for other in lake.windows(pairs(name)) if other != window]
    if others:
        raise LensError(f"{pairs(name)} is a sample of {others[0]} already: choose another --name for {window}")
    landed = Landed.find(lake, LISTINGS, lake.covering(LISTINGS, window))
    landed_sessions = _sessions_to_keep(lake, window) if rules.sessions else ()
    earlier = [part for part in lake.windows(LISTINGS) if part.start < window.end] if rules.sessions else []
    catalog = Landed.find(lake, LISTINGS, earlier)
    return Config(
        lake=lake,
        name=name,
        window=window,
        rules=rules,
        images=ImageSource.of(settings).allowing(image_roots([*landed, *landed_sessions, *catalog])),
        max_dead_letter_ratio=settings.max_dead_letter_ratio,
        landed=landed,
        landed_sessions=landed_sessions,
        catalog=catalog,
    )


def _sessions_to_keep(lake: Lake, window: Window) -> tuple[Landed, ...]:
    try:
        landed = Landed.find(lake, SESSIONS, lake.covering(SESSIONS, window))
    except LensError as err:
        raise LensError(f"{err}; or give --sessions 0 to validate on pairs alone") from err
    kept = tuple(part for part in landed if not is_from_log(part.manifest))
    if not kept:
        raise LensError(
            f"sessions of {window} are from the search service's log, whose photos are kept for LENS_SEARCH_LOG_DAYS alone, "
            "while a sample stays: give --sessions 0 to validate on pairs alone"
        )
    return kept


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    arguments.add_argument("--name", required=True, help="what the sample is known by: pairs/NAME in the lake")
    add_window(arguments, required=True)
    arguments.add_argument("--pairs", type=int, default=1_000_000, help="pairs to sample, validation included")
    arguments.add_argument(
        "--sessions",
        type=int,
        default=2_000,
        help="search sessions to sample to validate on, and as many to test on; 0 needs none to have landed",
    )
    arguments.add_argument("--validation_share", type=float, default=0.1, help="share of the products to validate on")
    arguments.add_argument("--test_share", type=float, default=0.2, help="share of the products to test on")
    arguments.add_argument(
        "--test_time", type=float, default=0.1, help="share of the window, at its end, whose sessions are tested on"
    )
    arguments.add_argument(
        "--split_by",
        choices=("product", "seller"),
        default="product",
        help="what training, validation and test never share; without a product, a seller's listings of the same title",
    )
    arguments.add_argument(
        "--balance", action="store_true", help="sample as evenly as possible from the categories' top two levels"
    )
    arguments.add_argument("--max_per_image", type=int, default=1, help="pairs of (nearly) the same image to keep")
    arguments.add_argument("--image_side", type=int, default=288, help="pixels that the shorter side is scaled down to")
    arguments.add_argument("--salt", default="pairs", help="another one gives another sample, split otherwise")
    known, beam_arguments = arguments.parse_known_args(argv)
    options = vars(known)
    name, window = options.pop("name"), Window.parse(options.pop("window_start"), options.pop("window_end"))
    config = configure(name, window, Rules(**options))
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline | "Landed windows" >> beam.Create(config.landed), config)


if __name__ == "__main__":
    launch(main)
