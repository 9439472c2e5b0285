"""Index listings as they are told of: a queue's events → the log → every index that is fed, within moments.

An event is a JSON object: a listing's whole state, as the search service takes it (`PUT /listings/…`), with its `item_id`. It
comes from a Pub/Sub subscription, or as a line of a file `*.jsonl` that is put into a folder: written elsewhere and renamed, so
that it is there whole. A folder is looked into every half second; with --once, what is there is read, and the job ends.

Events are kept in the log of listings first, and the subscription hears of that when they are; then they are embedded and
written to the indexes, a few together. Of two versions of a listing the newer one counts, whatever the order, and what is
repeated changes nothing. So a subscription may deliver twice, and a folder is read from the beginning when the job starts.

What is no listing, and a listing that no index can hold, e.g. because its photo is gone, is set aside in
`logs/listings-set-aside` with the reason, and counted (metrics `poison` and `unusable`). An event may come late, however old it
is: where the log feeds the lake (LENS_LISTINGS_FEED), it lands in the window in which it was written to the log.

While the cluster is away, requests are repeated for minutes. Then Dataflow tries the batch again, for ever. The local runner
ends the job with a sentence: start it again; what is in the log is replayed into an index before that goes live, and what is in
the folder is read again. The local runner, FnApiRunner, follows a folder, one bundle after the other, and has no Pub/Sub. Drain
a job on Dataflow to end it: one that is cancelled leaves what it has in hand to the log.

    python -m beam_jobs.index_listings --folder events/
    python -m beam_jobs.index_listings --subscription projects/my-project/subscriptions/listings --runner=DataflowRunner
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import apache_beam as beam
from apache_beam.io import fileio
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.utils.windowed_value import WindowedValue

from beam_jobs.launcher import launch, parser, pipeline_options
from beam_jobs.transforms.indexing import Indexing
from beam_jobs.transforms.windows import at_the_end
from listing_lens import progress
from listing_lens.errors import LensError
from listing_lens.indexing.events import Poison, entries_of, entry_of
from listing_lens.indexing.listing_log import ListingLog
from listing_lens.lake.records import Listing
from listing_lens.lake.windows import Lake
from listing_lens.search.index import PATIENCE_S, SearchIndex
from listing_lens.settings import Settings, load_settings

# How often a folder is looked into, in seconds.
_LOOK_EVERY_S = 0.5
# Listings that are embedded and written together, and how long the first of them waits for others, in seconds.
_TOGETHER = 16
_WAIT_S = 0.2
# Events that are kept in one file of the log.
_MOST_IN_FILE = 1000
_SUBSCRIPTION = re.compile(r"projects/[^/]+/subscriptions/[^/]+")


@dataclass(frozen=True)
class Subscription:
    """A Pub/Sub subscription, by its whole name."""

    name: str

    def events(self, pipeline: beam.Pipeline) -> beam.PCollection[bytes]:
        return pipeline | "Subscription" >> beam.io.ReadFromPubSub(subscription=self.name)


@dataclass(frozen=True)
class Folder:
    """A folder of files of events, one a line; `once`: those that are there now, otherwise also all that come."""

    path: str
    once: bool

    def events(self, pipeline: beam.Pipeline) -> beam.PCollection[bytes]:
        pattern = f"{self.path.rstrip('/')}/*.jsonl"
        files = fileio.MatchFiles(pattern) if self.once else fileio.MatchContinuously(pattern, interval=_LOOK_EVERY_S)
        return pipeline | "Files" >> files | "Open" >> fileio.ReadMatches() | "Lines" >> beam.FlatMap(_lines)


def _lines(file: fileio.ReadableFile) -> list[bytes]:
    return [line for line in file.read().splitlines() if line.strip()]


@dataclass(frozen=True)
class Config:
    """Where events come from, and how they are indexed."""

    source: Subscription | Folder
    log: ListingLog
    indexing: Indexing


def run(events: beam.PCollection[bytes], config: Config) -> None:
    """Events, as JSON → the log, and every index that is fed."""
    kept = events | "Keep in log" >> beam.ParDo(KeepInLog(config))
    _batches(kept, config.source) | "Embed and write" >> beam.ParDo(IndexListings(config))


def _batches(listings: beam.PCollection[Listing], source: Subscription | Folder) -> beam.PCollection[Sequence[Listing]]:
    if isinstance(source, Folder) and source.once:
        # All there is comes at once; and the local runner does not wait for timers once its source has ended.
        return listings | "Batch" >> beam.BatchElements(min_batch_size=_TOGETHER, max_batch_size=_TOGETHER)
    return (
        listings
        # What follows has its own tries: those of a cluster that is away do not fill the log.
        | "Spread" >> beam.WithKeys(0)
        | "Batch" >> beam.GroupIntoBatches.WithShardedKey(_TOGETHER, _WAIT_S)
        | "Without key" >> beam.Values()
    )


class KeepInLog(beam.DoFn):
    """Events → the `Listing`s that are in the log by now; the others are set aside."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._poison = Metrics.counter("index_listings", "poison")

    def setup(self) -> None:
        self._set_aside = self._config.indexing.set_aside()

    def start_bundle(self) -> None:
        self._events: list[bytes] = []

    def process(self, event: bytes) -> Iterator[Listing]:
        self._events.append(event)
        if len(self._events) >= _MOST_IN_FILE:
            yield from self._keep()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for listing in self._keep():
            yield at_the_end(listing)

    def _keep(self) -> list[Listing]:
        now, listings, poison = datetime.now(UTC), [], []
        for entry in entries_of(self._events, now):
            if isinstance(entry, Poison):
                poison.append(entry)
            else:
                listings.append(entry)
        self._events = []
        if listings:
            log = self._config.log.log
            log.append([entry_of(listing, now) for listing in listings], now, self._set_aside.writer)
        self._set_aside.events(poison, now)
        self._poison.inc(len(poison))
        return listings


class IndexListings(beam.DoFn):
    """`Listing`s that are in the log → every index that is fed."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._indexed, self._unusable = (Metrics.counter("index_listings", name) for name in ("indexed", "unusable"))

    def setup(self) -> None:
        self._indexer = self._config.indexing.connect()
        self._set_aside = self._config.indexing.set_aside()

    def process(self, listings: Iterable[Listing]) -> None:
        listings = list(listings)
        result = self._indexer.index(listings)
        self._set_aside.listings(result.unusable, datetime.now(UTC))
        self._indexed.inc(len(listings))
        self._unusable.inc(len(result.unusable))
        progress.advance("indexed", len(listings))

    def teardown(self) -> None:
        self._indexer.builds.client.close()


def configure(source: Subscription | Folder, settings: Settings) -> Config:
    """Check what can be checked before the job starts.

    Raises:
        LensError: the subscription is not a whole name, or the cluster or the lake cannot be reached.
    """
    if isinstance(source, Subscription) and not _SUBSCRIPTION.fullmatch(source.name):
        raise LensError(f"--subscription {source.name!r} is no whole name: write projects/PROJECT/subscriptions/NAME")
    lake = Lake(settings.lake)
    lake.check()
    SearchIndex.connect(settings, patience_s=PATIENCE_S)
    return Config(source, ListingLog.of(lake), Indexing.of(settings))


def _options(config: Config, settings: Settings, beam_arguments: Sequence[str]) -> PipelineOptions:
    options = pipeline_options(settings, beam_arguments)
    standard = options.view_as(StandardOptions)
    if isinstance(config.source, Subscription) and standard.runner == "FnApiRunner":
        raise LensError(
            "FnApiRunner has no Pub/Sub: add e.g. --runner=DataflowRunner, or put the events into a --folder"
        )
    standard.streaming = isinstance(config.source, Subscription) or not config.source.once
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline: to its end with --once, and for ever otherwise."""
    arguments = parser(__doc__)
    source = arguments.add_mutually_exclusive_group(required=True)
    source.add_argument("--subscription", help="of Pub/Sub: projects/PROJECT/subscriptions/NAME")
    source.add_argument("--folder", help="of files *.jsonl, an event a line; may be on gs://")
    arguments.add_argument("--once", action="store_true", help="read what is in the folder now, and end")
    known, beam_arguments = arguments.parse_known_args(argv)
    if known.once and not known.folder:
        raise LensError("--once is for a folder: a subscription has no end")
    settings = load_settings()
    config = configure(Folder(known.folder, known.once) if known.folder else Subscription(known.subscription), settings)
    with beam.Pipeline(options=_options(config, settings, beam_arguments)) as pipeline:
        run(config.source.events(pipeline), config)


if __name__ == "__main__":
    launch(main)
