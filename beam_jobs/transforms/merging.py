"""From embedded items to a new version of the table: workers stage files, which are merged in one commit at the end."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsDict, AsList, AsSingleton
from apache_beam.utils.windowed_value import WindowedValue

from beam_jobs.transforms.windows import MostCommon, at_the_end
from listing_lens.lake.dead_letters import DeadLetters, Letter
from listing_lens.lake.embeddings import NEWER, Embeddings, Item, item_batch
from listing_lens.lake.staging import StagedFile, read_staged
from listing_lens.lake.tables import Merged

logger = logging.getLogger(__name__)

# Rows per batch of a staged file.
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Stage:
    """Where a run stages its rows, and their schema.

    Attributes:
        attempt: the run's name.
        schema: the table's schema.
        slice: the slice's number within the run; each slice is merged as a whole.
    """

    embeddings: Embeddings
    attempt: str
    schema: pa.Schema
    slice: int = 0

    @property
    def folder(self) -> str:
        """The folder of the whole run."""
        return f"{self.embeddings.staging}/{self.attempt}"

    @property
    def slice_folder(self) -> str:
        return f"{self.folder}/{self.slice}"

    @property
    def summary_path(self) -> str:
        """Where a slice leaves its summary for the end of the run."""
        return f"{self.slice_folder}.json"


@dataclass(frozen=True)
class Staged:
    """The results for the arrivals, as PCollections: paths of staged files, `Letter`s, counts, and hosts as JSON.

    Counts are ((window name, what is counted), number).
    """

    paths: beam.PCollection[str]
    letters: beam.PCollection[Letter]
    counts: beam.PCollection[tuple[tuple[str, str], int]]
    hosts: beam.PCollection[str]


@dataclass(frozen=True)
class Summary:
    """The record of a run: counts by window name, and what its hosts computed in."""

    counts: Mapping[str, Mapping[str, int]]
    hosts: tuple[Mapping[str, Any], ...]

    def total(self) -> Counter[str]:
        """The counts of all windows together."""
        total: Counter[str] = Counter()
        for counts in self.counts.values():
            total.update(counts)
        return total


@dataclass(frozen=True)
class Outcome:
    """The result of a run, once all of it is staged.

    Attributes:
        reasons: the most common reasons of the letters, with their counts.
    """

    paths: tuple[str, ...]
    letters: tuple[Letter, ...]
    summary: Summary
    reasons: tuple[tuple[str, int], ...]


class StageItems(beam.DoFn):
    """`Item`s → paths of the staged files that hold them, one file per bundle.

    If a bundle is retried, its first file is left unreferenced, and removed with its folder.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def start_bundle(self) -> None:
        self._file: StagedFile | None = None
        self._items: list[Item] = []

    def process(self, item: Item) -> None:
        self._items.append(item)
        if len(self._items) >= _BATCH_ROWS:
            self._write()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._items:
            self._write()
        if self._file is not None:
            self._file.close()
            yield at_the_end(self._file.path)

    def _write(self) -> None:
        if self._file is None:
            self._file = StagedFile(self._stage.embeddings.lake, self._stage.slice_folder, self._stage.schema)
        self._file.write(item_batch(self._items, self._stage.schema))
        self._items = []


def outcome_of(pipeline: beam.Pipeline, staged: Staged) -> beam.PCollection[Outcome]:
    """The results for the arrivals → one `Outcome`, at the end."""
    reasons = staged.letters | "Reasons" >> beam.Map(lambda letter: letter.reason) | "Commonest" >> MostCommon()
    return (
        pipeline
        | "End" >> beam.Create([None])
        | "Outcome"
        >> beam.Map(
            _outcome,
            AsList(staged.paths),
            AsList(staged.letters),
            AsDict(staged.counts | "Sum" >> beam.CombinePerKey(sum)),
            AsSingleton(reasons),
            AsList(staged.hosts),
        )
    )


def _outcome(
    _: None,
    paths: list[str],
    letters: list[Letter],
    counted: dict[tuple[str, str], int],
    reasons: list[tuple[str, int]],
    hosts: list[str],
) -> Outcome:
    counts: dict[str, dict[str, int]] = {}
    for (window, name), count in counted.items():
        counts.setdefault(window, {})[name] = count
    summary = Summary(counts, tuple(map(json.loads, sorted(hosts))))
    return Outcome(tuple(sorted(paths)), tuple(letters), summary, tuple(reasons))


def merge(outcome: Outcome, stage: Stage) -> Merged:
    """Merge a run into the table in one commit, store its dead letters, and remove those that its rows have settled.

    It may be repeated, so what was staged stays: rows that are in the table already change nothing.
    """
    embeddings, lake = stage.embeddings, stage.embeddings.lake
    merged = embeddings.items.merge(stage.schema, read_staged(lake, outcome.paths), newer=NEWER)
    letters = DeadLetters(embeddings)
    letters.add(outcome.letters)
    versions: dict[str, int] = {}
    if letters.table.exists():
        for batch in read_staged(lake, outcome.paths, ["item_id", "version"]):
            versions |= dict(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    settled = letters.settle(versions)
    logger.info(
        "%s: %d items are new, %d replaced, in version %d; %d dead letters are new, %d settled",
        embeddings.items.path,
        merged.inserted,
        merged.updated,
        merged.version,
        len(outcome.letters),
        settled,
    )
    return merged
