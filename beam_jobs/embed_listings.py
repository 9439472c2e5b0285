"""Embed landed listings: lake → decode → encode → the encoder's table.

The newest landed version of each item is compared with the table's. Searchable listings are embedded, unless their photo is
unchanged; sold and deleted ones are kept without an embedding, so that the indexes learn that they are gone. An unusable
photo or an invalid row becomes a dead letter with its reason, without affecting the others. A run enters the table in a
single commit, or not at all; the ledger then records that its windows are embedded, and from which input.

With --each_landed, all landed windows whose input is not embedded yet are embedded: the newest version of each item once,
however many windows contain it. A catalog of millions is embedded in groups of windows, the newest first: what buyers see
most is there soonest, and if the run is killed, the next one goes on with the windows that are left. A window of millions is
embedded in slices of its items, one commit per slice.

The embeddings are computed in the backend that is pinned for the space (`beam_jobs.calibrate_encoder`), else in float32.

    python -m beam_jobs.embed_listings --window_start 2026-01-31T00:00:00Z --window_end 2026-02-01T00:00:00Z
    python -m beam_jobs.embed_listings --each_landed --encoder models:/listing-encoder@candidate
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_jobs.launcher import add_window, launch, optional_window, parser, pipeline_options
from beam_jobs.transforms.embedding import OUTCOMES, Arrival, Embedding, embed_newest
from beam_jobs.transforms.merging import Outcome, Stage, Staged, Summary, merge, outcome_of
from beam_jobs.transforms.windows import Landed, image_roots, landed_listings, require_few_dead_letters
from listing_lens.embedding.sources import resolve_encoder, windows_not_embedded
from listing_lens.errors import LensError
from listing_lens.jobs import run_job
from listing_lens.lake.dead_letters import DeadLetters, Letter
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.ledger import Completed, Ledger, input_of
from listing_lens.lake.pins import Pins
from listing_lens.lake.records import Refused
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.settings import Settings, load_settings
from models.encoders.files import identify, thumbnail_side
from models.encoders.runtime import Backend
from models.sampling import sample_number

logger = logging.getLogger(__name__)

# The ledger's counts for a window: rows `read`, which are either `refused`, `older` versions of an item, or the `newest` of
# one, whose outcomes are the next six. `late` counts rows that landed late; `encoded` counts the photos that the model
# encoded: identical bytes are encoded once.
COUNTS = ("read", "late", "refused", "older", "newest", *OUTCOMES, "encoded")
# Rows compared, embedded and merged together: their items' ids and versions, about 200 MB, are sent to every worker.
_MOST_ROWS = 2_000_000
_SALT = "embed listings"


@dataclass(frozen=True)
class Part:
    """A landed window that a run reads, and the ledger window in which it is counted."""

    landed: Landed
    window: Window


@dataclass(frozen=True)
class Config:
    """One run, or one slice of its items: which landed windows, for which ledger windows, and how they are embedded."""

    parts: tuple[Part, ...]
    embedding: Embedding
    max_dead_letter_ratio: float
    slices: int = 1

    @property
    def stage(self) -> Stage:
        return self.embedding.stage

    @property
    def lake(self) -> Lake:
        return self.embedding.embeddings.lake

    @property
    def windows(self) -> tuple[Window, ...]:
        return tuple(sorted({part.window for part in self.parts}))

    @property
    def name(self) -> str:
        """The windows, for messages."""
        first, *others = self.windows
        return str(first) if not others else f"{first} and {len(others)} more"


def run(parts: beam.PCollection[Part], config: Config) -> beam.PCollection[Outcome]:
    """`Part`s → the `Outcome`, once the listings are merged into the table."""
    read = (
        parts
        | "Spread windows" >> beam.Reshuffle()
        | "Read listings" >> beam.ParDo(ReadListings(config)).with_outputs("letters", "counts", main="arrivals")
    )
    staged = embed_newest(read.arrivals, config.embedding)
    both = Staged(
        staged.paths,
        (staged.letters, read.letters) | "All letters" >> beam.Flatten(),
        (staged.counts, read.counts) | "Counts of all" >> beam.Flatten(),
        staged.hosts,
    )
    return outcome_of(parts.pipeline, both) | "Check and merge" >> beam.Map(_check_and_merge, config)


class ReadListings(beam.DoFn):
    """`Part`s → the `Arrival`s of the run's slice; and `Letter`s for invalid rows."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def process(self, part: Part) -> Iterator[Arrival | TaggedOutput]:
        config = self._config
        counts: Counter[str] = Counter()
        for listing in landed_listings(config.lake, part.landed, part.window):
            # Invalid rows are spread over the slices too: each slice is checked against its own share of them.
            key = listing.row if isinstance(listing, Refused) else listing.item_id
            if config.slices > 1 and sample_number(_SALT, key) % config.slices != config.stage.slice:
                continue
            if isinstance(listing, Refused):
                counts.update(("read", "refused"))
                letter = Letter.of_refused(listing, part.landed.window, config.embedding.now)
                yield TaggedOutput("letters", letter)
                continue
            counts.update(("read", "late") if listing.updated_at < part.landed.window.start else ("read",))
            yield Arrival(listing, part.window)
        for name, count in counts.items():
            yield TaggedOutput("counts", ((part.window.name, name), count))


def _check_and_merge(outcome: Outcome, config: Config) -> Outcome:
    """Merge the staged files, unless listings went missing, too many are dead letters, or a later attempt took over."""
    for window, counts in outcome.summary.counts.items():
        _require_accounted(window, Counter(counts))
    total = outcome.summary.total()
    tried = total["embedded"] + total["reused"] + total["dead_lettered"] + total["refused"]
    dead = total["dead_lettered"] + total["refused"]
    require_few_dead_letters(config.name, dead, tried, outcome.reasons, config.max_dead_letter_ratio)
    stage = config.stage
    Ledger(stage.embeddings).current(config.windows, stage.attempt)
    merge(outcome, stage)
    config.lake.write_bytes(stage.summary_path, json.dumps(asdict(outcome.summary)).encode())
    return outcome


def _require_accounted(window: str, counts: Counter[str]) -> None:
    for whole, names in (("read", ("refused", "older", "newest")), ("newest", OUTCOMES)):
        came_out = sum(counts[name] for name in names)
        if counts[whole] != came_out:
            raise LensError(
                f"window {window}: {counts[whole]} listings went in as {whole}, {came_out} came out: {counts}"
            )


def complete(slices: Sequence[Config]) -> None:
    """Record in the ledger that a run's windows are embedded, once all its slices are merged.

    Raises:
        LensError: later attempts took over all of the windows.
    """
    config = slices[0]
    embedding, stage = config.embedding, config.stage
    summaries = [Summary(**json.loads(config.lake.read_bytes(part.stage.summary_path))) for part in slices]
    inputs: dict[Window, list[str]] = {}
    for part in config.parts:
        inputs.setdefault(part.window, []).append(input_of(part.landed.window, part.landed.manifest.identity))
    counts = {window: Counter(dict.fromkeys(COUNTS, 0)) for window in config.windows}
    for window, counted in counts.items():
        for summary in summaries:
            counted.update(summary.counts.get(window.name, {}))
    parameters = {
        "encoder_source": embedding.encoder_source,
        "encoder_id": stage.embeddings.encoder_id,
        "backend": embedding.pin.backend if embedding.pin else Backend.FLOAT32,
        # What each host really computed in: float32, if it could not run the backend.
        "hosts": _distinct(host for summary in summaries for host in summary.hosts),
    }
    completed = {window: Completed(tuple(inputs[window]), counts[window]) for window in config.windows}
    # Rows that were invalid in an earlier landing of a window, and are no longer there.
    DeadLetters(stage.embeddings).forget_refused({part.landed.window for part in config.parts}, embedding.now)
    done = Ledger(stage.embeddings).complete(completed, stage.attempt, parameters, datetime.now(UTC))
    config.lake.remove_folder(stage.folder)
    total = sum(counts.values(), Counter())
    logger.info("%d windows of %s are embedded: %s", len(done), stage.embeddings.encoder_id, dict(total))


def _distinct(hosts: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each once: a host takes part in several slices."""
    by_text = {json.dumps(host, sort_keys=True): host for host in hosts}
    return [by_text[text] for text in sorted(by_text)]


def configure(windows: Mapping[Window, Sequence[Window]], encoder_source: str | None = None) -> Config:
    """Check the run's dependencies before it starts.

    Args:
        windows: ledger windows, each with the landed windows it reads.
        encoder_source: the encoder; None means LENS_ENCODER.

    Raises:
        LensError: a landed window is gone, the encoder is unknown, or the lake cannot be reached.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    read = sorted({landed for several in windows.values() for landed in several})
    landed = {found.window: found for found in Landed.find(lake, LISTINGS, read)}
    parts = tuple(Part(landed[part], window) for window, several in windows.items() for part in several)
    rows = sum(part.landed.manifest.counts["rows"] for part in parts)
    embedding = Embedding.configure(
        lake,
        resolve_encoder(encoder_source, settings),
        image_roots(part.landed for part in parts),
        rows,
        settings,
        datetime.now(UTC),
    )
    return Config(parts, embedding, settings.max_dead_letter_ratio, slices=max(1, -(-rows // _MOST_ROWS)))


def slice_of(config: Config, number: int) -> Config:
    """One of the run's slices, to be compared with the current version of the table."""
    embedding, stage = config.embedding, replace(config.embedding.stage, slice=number)
    return replace(config, embedding=replace(embedding, stage=stage, version=embedding.embeddings.items.version()))


def newest_first(rows: Mapping[Window, int], most: int) -> list[list[Window]]:
    """Windows in groups that are embedded one after the other, from the newest to the oldest.

    Args:
        rows: of each window.
        most: rows in a group; a window that has more is a group of its own.
    """
    groups: list[list[Window]] = []
    room = 0
    for window in sorted(rows, key=lambda window: (window.end, window.start), reverse=True):
        if not groups or rows[window] > room:
            groups.append([])
            room = most
        groups[-1].append(window)
        room -= rows[window]
    return groups


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end, once per group of windows and slice."""
    arguments = parser(__doc__)
    add_window(arguments, required=False)
    arguments.add_argument("--encoder", metavar="SOURCE", help="the encoder (default: LENS_ENCODER)")
    arguments.add_argument(
        "--each_landed",
        action="store_true",
        help="embed every landed window of listings in between whose input is not embedded yet, the newest first; "
        "of all that have landed when no window is given",
    )
    known, beam_arguments = arguments.parse_known_args(argv)
    settings = load_settings()
    window = optional_window(known)
    # An alias may move in the meantime: resolve it once, so that the comparison and the embedding use the same encoder.
    source = resolve_encoder(known.encoder, settings)
    lake = Lake(settings.lake)
    lake.check()
    _choose_backend(lake, source, settings)
    if known.each_landed:
        # Each window reads only itself: the windows that overlap it are embedded too, or have been already.
        runs = [{landed: [landed] for landed in group} for group in _not_embedded(lake, window, source)]
    elif window:
        runs = [{window: lake.covering(LISTINGS, window)}]
    else:
        arguments.error("--window_start and --window_end are required without --each_landed")
    for windows in runs:
        _embed(configure(windows, source), settings, beam_arguments)


def _choose_backend(lake: Lake, encoder_source: str, settings: Settings) -> None:
    """Calibrate an encoder that has no pin yet, if there is a choice; if that fails, it stays in float32 and says why."""
    if set(settings.encoder_backends) == {Backend.FLOAT32} or thumbnail_side(encoder_source):
        return
    encoder_id = identify(encoder_source)
    if Pins(Embeddings(lake, encoder_id)).get():
        return
    try:
        # In a process of its own, which leaves its GPU to the workers.
        run_job("calibrate_encoder", ["--encoder", encoder_source], settings)
    except LensError as err:
        logger.warning("%s is embedded in float32: %s", encoder_id, err)


def _not_embedded(lake: Lake, window: Window | None, encoder_source: str) -> list[list[Window]]:
    encoder_id = identify(encoder_source)
    windows = windows_not_embedded(lake, encoder_id, window)
    logger.info("%d landed windows of listings are not embedded by %s yet", len(windows), encoder_id)
    landed = Landed.find(lake, LISTINGS, windows)
    return newest_first({part.window: part.manifest.counts["rows"] for part in landed}, _MOST_ROWS)


def _embed(config: Config, settings: Settings, beam_arguments: Sequence[str]) -> None:
    Ledger(config.stage.embeddings).begin(config.windows, config.stage.attempt, config.embedding.now)
    slices = []
    for number in range(config.slices):
        slices.append(slice_of(config, number))
        with beam.Pipeline(options=pipeline_options(settings, beam_arguments)) as pipeline:
            run(pipeline | "Landed windows" >> beam.Create(config.parts), slices[-1])
        config.lake.remove_folder(slices[-1].stage.slice_folder)
    complete(slices)


if __name__ == "__main__":
    launch(main)
