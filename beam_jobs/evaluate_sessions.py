"""Evaluate an embedder on one window's search sessions: how well would it have ranked what was shown?

For each session the query photo is embedded, and the items that were shown are ranked by their similarity to it; those
that were tapped are the relevant ones. Every session is judged by `embedding` (the encoder alone), by `projected`
(what an index holds) and by the projection's first dimensions (`projected_8`, `projected_16`, …), so that the price of each
shows. Sessions that cannot be judged are left out and counted by reason. The means are written to the lake, and the
per-session metrics of the first two.

    python -m beam_jobs.evaluate_sessions --window_start … --window_end … --card '{"encoder_source": …}'
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsDict, AsList, TaggedOutput
from numpy.typing import NDArray
from pydantic import ValidationError

from beam_jobs.image_loader import ImageLoader, Unusable
from beam_jobs.lake_io import ReadWindows, WindowTarget, WriteFiles, commit, sessions_in
from beam_jobs.launcher import add_window, launch, parser, pipeline_options
from listing_lens import progress
from listing_lens.embedding.embedder import Embedder, require_encoder
from listing_lens.encoders import encoder_runtime
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.fits import load_projection
from listing_lens.lake.records import Session, embedding_matrix
from listing_lens.lake.window import Window
from listing_lens.lake.windows import ROWS, SESSIONS, Lake, Manifest, embeddings, evaluations
from listing_lens.settings import load_settings
from models.embedder import EmbedderCard
from models.encoders.runtime import Runtime
from models.metrics import METRICS, relevance_by_rank, session_metrics
from models.projection import prefix_dims

logger = logging.getLogger(__name__)

VARIANTS = ("embedding", "projected")
LEFT_OUT = ("malformed", "nothing_tapped", "query_unreadable", "item_not_embedded")

RESULT_SCHEMA = pa.schema(
    [pa.field("session_id", pa.string(), nullable=False), pa.field("variant", pa.string(), nullable=False)]
    + [pa.field(name, pa.float64(), nullable=False) for name in METRICS]
)


@dataclass(frozen=True)
class Config:
    """One evaluation: of which embedder, on which window's sessions."""

    lake: Lake
    window: Window
    card: EmbedderCard
    images: ImageSource
    runtime: Runtime
    batch_size: int
    landed: tuple[Window, ...]
    expected: int

    def new_target(self) -> WindowTarget:
        """The evaluation to write, as a new attempt."""
        return WindowTarget(self.lake, evaluations(self.card.space), self.window)


@dataclass(frozen=True)
class Query:
    """A session and the embedding (d,) of its photo."""

    session: Session
    embedding: NDArray[np.float32]


# An item's newest embedding: when it was updated, and the vector (d,).
Dated = tuple[datetime, NDArray[np.float32]]


def run(landed: beam.PCollection, config: Config) -> beam.PCollection:
    """Windows of sessions that have landed → the manifest of the evaluation."""
    target = config.new_target()
    sessions = (
        landed
        | "Spread windows" >> beam.Reshuffle()
        | "Read sessions" >> beam.FlatMap(lambda part: sessions_in(config.lake, part, config.window))
    )
    queries = (
        sessions
        | "Batch" >> beam.BatchElements(min_batch_size=config.batch_size, max_batch_size=config.batch_size)
        | "Embed queries" >> beam.ParDo(EmbedQueries(config)).with_outputs("left_out", main="queries")
    )
    catalog = config.lake.windows(embeddings(config.card.encoder_id))
    # Only ids go to every worker, so that embeddings of what nobody was shown need not be shuffled.
    wanted = (
        queries.queries
        | "Shown items" >> beam.FlatMap(lambda query: query.session.shown)
        | "Once each" >> beam.Distinct()
        | "As keys" >> beam.Map(lambda item_id: (item_id, None))
    )
    versions = (
        landed.pipeline
        | "Catalog windows" >> beam.Create(catalog)
        | "Catalog"
        >> ReadWindows(config.lake, embeddings(config.card.encoder_id), ["item_id", "updated_at", "embedding"])
        | "Shown ones" >> beam.FlatMap(_by_item, AsDict(wanted))
        | "Newest" >> beam.CombinePerKey(lambda versions: max(versions, key=lambda version: version[0]))
    )
    showings = queries.queries | "Showings" >> beam.FlatMap(
        lambda query: [(item_id, query.session.session_id) for item_id in query.session.shown]
    )
    shown = (
        {"sessions": showings, "versions": versions}
        | "Find what was shown" >> beam.CoGroupByKey()
        | "By session" >> beam.FlatMap(_by_session)
    )
    by_session = queries.queries | "Key by session" >> beam.WithKeys(lambda query: query.session.session_id)
    judged = (
        {"queries": by_session, "items": shown}
        | "Bring together" >> beam.CoGroupByKey()
        | "Judge" >> beam.ParDo(Judge(config)).with_outputs("left_out", "fewer_dims", main="results")
    )
    files = (
        judged.results
        | "Batch results" >> beam.BatchElements(min_batch_size=256, max_batch_size=4096)
        | "As table" >> beam.Map(lambda rows: pa.Table.from_pylist(rows, schema=RESULT_SCHEMA))
        | "Write" >> beam.ParDo(WriteFiles(target, ROWS, RESULT_SCHEMA))
    )
    means = (
        (judged.results, judged.fewer_dims)
        | "All variants" >> beam.Flatten()
        | "Each metric" >> beam.FlatMap(lambda row: [(f"{row['variant']}/{name}", row[name]) for name in METRICS])
        | "Mean" >> beam.combiners.Mean.PerKey()
    )
    reasons = (
        (queries.left_out, judged.left_out)
        | "All left out" >> beam.Flatten()
        | "Count reasons" >> beam.combiners.Count.PerElement()
    )
    read = (
        sessions | "Count read" >> beam.combiners.Count.Globally() | "Name" >> beam.Map(lambda count: ("read", count))
    )
    counts = (reasons, read) | "All counts" >> beam.Flatten()
    return (
        landed.pipeline
        | "Finish" >> beam.Create([None])
        | "Check and commit"
        >> beam.Map(_check_and_commit, AsList(files), AsDict(counts), AsDict(means), config=config, target=target)
    )


class EmbedQueries(beam.DoFn):
    """A batch of sessions → queries; sessions that no ranking can be judged by → the reason."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def setup(self) -> None:
        card = self._config.card
        self._encoder = require_encoder(card.encoder_source, card.encoder_id, self._config.runtime)
        self._loader = ImageLoader(self._config.images, self._encoder.image_side)

    def process(self, sessions: Sequence[Session]) -> Iterator[Query | TaggedOutput]:
        sound = [session for session in sessions if session.sound]
        tapped = [session for session in sound if any(session.tapped)]
        yield from [TaggedOutput("left_out", "malformed")] * (len(sessions) - len(sound))
        yield from [TaggedOutput("left_out", "nothing_tapped")] * (len(sound) - len(tapped))
        usable, images = [], []
        for session, decoded in zip(tapped, self._loader.load([x.query_image_uri for x in tapped]), strict=True):
            if isinstance(decoded, Unusable):
                logger.warning("session %s: query photo: %s", session.session_id, decoded.reason)
                yield TaggedOutput("left_out", "query_unreadable")
            else:
                usable.append(session)
                images.append(decoded)
        for session, embedding in zip(usable, self._encoder.embed(images), strict=True):
            yield Query(session, embedding)
        progress.advance("evaluated", len(sessions), self._config.expected)


class Judge(beam.DoFn):
    """A session's query and the embeddings of what it showed → one row of metrics a variant; or the reason why not.

    Variants of fewer dimensions than an index holds have an output of their own, `fewer_dims`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def setup(self) -> None:
        card = self._config.card
        projection = load_projection(self._config.lake, card.projection_id, card.encoder_id)
        self._projected = {"projected": projection} | {
            f"projected_{dims}": projection.prefix(dims) for dims in prefix_dims(projection.dims)
        }

    def process(self, grouped: tuple[str, dict[str, Any]]) -> Iterator[dict[str, object] | TaggedOutput]:
        session_id, group = grouped
        items: dict[str, NDArray[np.float32]] = dict(group["items"])
        for query in group["queries"]:
            session = query.session
            if not all(item_id in items for item_id in session.shown):
                yield TaggedOutput("left_out", "item_not_embedded")
                continue
            vectors = np.vstack([query.embedding, *(items[item_id] for item_id in session.shown)])
            by_variant = {"embedding": vectors}
            by_variant |= {variant: projection.apply(vectors) for variant, projection in self._projected.items()}
            for variant, rows in by_variant.items():
                ranked = relevance_by_rank(rows[1:] @ rows[0], session.tapped, session.shown)
                row = {"session_id": session_id, "variant": variant, **session_metrics(ranked)}
                yield row if variant in VARIANTS else TaggedOutput("fewer_dims", row)


def _by_item(batch: pa.RecordBatch, wanted: dict[str, None]) -> Iterable[tuple[str, Dated]]:
    item_ids, times = (batch.column(name).to_pylist() for name in ("item_id", "updated_at"))
    for item_id, updated_at, embedding in zip(item_ids, times, embedding_matrix(batch), strict=True):
        if item_id in wanted:
            yield item_id, (updated_at, embedding)


def _by_session(grouped: tuple[str, dict[str, Any]]) -> Iterable[tuple[str, tuple[str, NDArray[np.float32]]]]:
    item_id, group = grouped
    for _, embedding in group["versions"]:
        for session_id in group["sessions"]:
            yield session_id, (item_id, embedding)


def _check_and_commit(
    _: None,
    files: list[tuple[str, str]],
    counts: dict[str, int],
    means: dict[str, float],
    *,
    config: Config,
    target: WindowTarget,
) -> Manifest:
    """Commit the evaluation unless no session could be judged."""
    counts = dict.fromkeys(LEFT_OUT, 0) | counts
    counts["evaluated"] = counts["read"] - sum(counts[reason] for reason in LEFT_OUT)
    if not counts["evaluated"]:
        raise LensError(
            f"no session of {config.window} can be judged ({counts}): embed the windows of the items that were shown, "
            "or choose a window with taps"
        )
    parameters = {"card": config.card.model_dump(), "metrics": means}
    manifest = commit(target, files, counts, parameters)
    logger.info("evaluated %s on %s: %s; %s", config.card.space, config.window, counts, means)
    return manifest


def configure(window: Window, card: EmbedderCard) -> Config:
    """Check what the evaluation depends on, before it starts.

    Raises:
        LensError: sessions of the window have not landed, the embedder is incomplete, the lake is out of reach.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    runtime = encoder_runtime(settings)
    Embedder.load(card, lake, replace(runtime, device="cpu"))
    landed = lake.covering(SESSIONS, window)
    return Config(
        lake=lake,
        window=window,
        card=card,
        images=ImageSource.of(settings).allowing(lake.image_roots(SESSIONS, landed)),
        runtime=runtime,
        batch_size=settings.encoder_batch_size,
        landed=tuple(landed),
        expected=sum(lake.manifest(SESSIONS, part).counts["rows"] for part in landed),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    add_window(arguments, required=True)
    arguments.add_argument(
        "--card", required=True, metavar="JSON", help="the embedder's card, as the registry keeps it"
    )
    known, beam_arguments = arguments.parse_known_args(argv)
    try:
        card = EmbedderCard.model_validate_json(known.card)
    except ValidationError as err:
        raise LensError(f"--card is no embedder's card: {err.errors()[0]['msg']}") from err
    config = configure(Window.parse(known.window_start, known.window_end), card)
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline | "Landed windows" >> beam.Create(config.landed), config)


if __name__ == "__main__":
    launch(main)
