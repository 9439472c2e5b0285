"""Evaluate an embedder on one window's search sessions: how well would it have ranked the items that were shown?

For each session, the query is embedded, and the shown items are ranked by their similarity to it; the tapped items are the
relevant ones. A query is a photo, several photos of one item, words, or photos and words, which are weighed as the search that
was logged weighed them; words need an encoder with a text tower. Kinds of queries have means of their own. Every session is
evaluated with `embedding` (the encoder alone), `projected` (what an index holds) and the projection's first dimensions
(`projected_8`, `projected_16`, …), which shows what each reduction costs. Sessions that cannot be evaluated are skipped and
counted by reason. The lake receives the means of every variant, and the per-session metrics of the first two.

An item is judged by the newest embedding that it had since the window began, also when it has been sold since. A window that
is evaluated again is judged by the embeddings of the first time (--afresh: by those of today).

    python -m beam_jobs.evaluate_sessions --window_start … --window_end … --card '{"encoder_source": …}'
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from beam_jobs.launcher import add_window, launch, parser, pipeline_options
from beam_jobs.transforms.image_loader import ImageLoader, Unusable
from beam_jobs.transforms.tables import ReadItems
from beam_jobs.transforms.windows import CommitWindow, Landed, WindowTarget, WriteFiles, image_roots, landed_sessions
from listing_lens import progress
from listing_lens.embedding.embedder import Embedder, require_encoder
from listing_lens.embedding.sources import encoder_runtime
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.embeddings import Embeddings, with_embedding
from listing_lens.lake.evaluations import evaluated_as, metric_prefix
from listing_lens.lake.fits import load_projection
from listing_lens.lake.records import QueryKind, Session
from listing_lens.lake.searches import kept_since
from listing_lens.lake.tables import places_between, version_at
from listing_lens.lake.window import Window
from listing_lens.lake.windows import ROWS, SESSIONS, Lake, Manifest, evaluations
from listing_lens.settings import Settings, load_settings
from models.embedder import EmbedderCard
from models.encoders.runtime import Runtime
from models.encoders.texts import NoTextTowerError, TextEncoder, require_text_encoder
from models.metrics import METRICS, relevance_by_rank, session_metrics
from models.projection import prefix_dims
from models.queries import QueryVectors

logger = logging.getLogger(__name__)

VARIANTS = ("embedding", "projected")
LEFT_OUT = ("malformed", "nothing_tapped", "query_unreadable", "no_text_tower", "item_not_embedded")

RESULT_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("session_id", "query", "variant")]
    + [pa.field(name, pa.float64(), nullable=False) for name in METRICS]
)


@dataclass(frozen=True)
class Config:
    """One evaluation: which embedder, on which window's sessions."""

    lake: Lake
    window: Window
    card: EmbedderCard
    # Of the encoder's table, the first and the last: an item is judged by its newest embedding in between.
    versions: tuple[int, int]
    images: ImageSource
    runtime: Runtime
    text_weight: float
    batch_size: int
    landed: tuple[Landed, ...]
    expected: int

    def new_target(self) -> WindowTarget:
        """The evaluation to write, as a new attempt."""
        return WindowTarget(self.lake, evaluations(self.card.space), self.window)


@dataclass(frozen=True)
class EmbeddedQuery:
    """A session and the embeddings of its query's parts."""

    session: Session
    parts: QueryVectors


def run(landed: beam.PCollection[Landed], config: Config) -> beam.PCollection[Manifest]:
    """Landed windows of sessions → the manifest of the evaluation."""
    target = config.new_target()
    sessions = (
        landed
        | "Spread windows" >> beam.Reshuffle()
        | "Read sessions" >> beam.FlatMap(lambda part: landed_sessions(config.lake, part, config.window))
    )
    queries = (
        sessions
        | "Batch" >> beam.BatchElements(min_batch_size=config.batch_size, max_batch_size=config.batch_size)
        | "Embed queries" >> beam.ParDo(EmbedQueries(config)).with_outputs("left_out", main="queries")
    )
    wanted = (
        queries.queries
        | "Shown items" >> beam.FlatMap(lambda query: query.session.shown)
        | "Once each" >> beam.Distinct()
        | "As keys" >> beam.Map(lambda item_id: (item_id, None))
    )
    table = Embeddings(config.lake, config.card.encoder_id).items
    found = (
        wanted
        | "Look up" >> ReadItems(table, places_between(table, *config.versions), ["item_id", "version", "embedding"])
        | "By item" >> beam.FlatMap(_by_item)
        | "Newest" >> beam.CombinePerKey(lambda dated: max(dated, key=lambda one: one[0]))
        | "Without its version" >> beam.MapTuple(lambda item_id, dated: (item_id, dated[1]))
    )
    showings = queries.queries | "Showings" >> beam.FlatMap(
        lambda query: [(item_id, query.session.session_id) for item_id in query.session.shown]
    )
    shown = (
        {"sessions": showings, "embeddings": found}
        | "Find what was shown" >> beam.CoGroupByKey()
        | "By session" >> beam.FlatMap(_by_session)
    )
    by_session = queries.queries | "Key by session" >> beam.WithKeys(lambda query: query.session.session_id)
    judged = (
        {"queries": by_session, "items": shown}
        | "Bring together" >> beam.CoGroupByKey()
        | "Rank" >> beam.ParDo(RankShown(config)).with_outputs("left_out", "evaluated", "fewer_dims", main="results")
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
        | "Each metric" >> beam.FlatMap(_by_metric)
        | "Mean" >> beam.combiners.Mean.PerKey()
    )
    counts = (
        sessions | "Count read" >> beam.Map(lambda _: ("read", 1)),
        judged.evaluated | "Count evaluated" >> beam.Map(lambda kind: (evaluated_as(kind), 1)),
        (queries.left_out, judged.left_out)
        | "All left out" >> beam.Flatten()
        | "Why left out" >> beam.Map(lambda reason: (reason, 1)),
    ) | "All counts" >> beam.Flatten()
    return {"files": files, "counts": counts, "means": means} | "Commit" >> CommitWindow(
        target, partial(_seal, config=config)
    )


class EmbedQueries(beam.DoFn):
    """A batch of sessions → queries; `left_out`: the reason for each session that cannot be evaluated."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def setup(self) -> None:
        card = self._config.card
        self._encoder = require_encoder(card.encoder_source, card.encoder_id, self._config.runtime)
        self._loader = ImageLoader(self._config.images, self._encoder.image_side)

    def process(self, sessions: Sequence[Session]) -> Iterator[EmbeddedQuery | TaggedOutput]:
        usable = []
        for session in sessions:
            if why := self._why_not(session):
                yield TaggedOutput("left_out", why)
            else:
                usable.append(session)
        photos = self._photos([uri for session in usable for uri in session.query.image_uris])
        readable = []
        for session in usable:
            unreadable = [photo for uri in session.query.image_uris if isinstance(photo := photos[uri], Unusable)]
            if unreadable:
                logger.warning("session %s: query photo: %s", session.session_id, unreadable[0].reason)
                yield TaggedOutput("left_out", "query_unreadable")
            else:
                readable.append(session)
        yield from self._embedded(readable, photos)
        progress.advance("evaluated", len(sessions), self._config.expected)

    @cached_property
    def _text_encoder(self) -> TextEncoder | None:
        """Loaded only when a session has words."""
        card = self._config.card
        try:
            return require_text_encoder(card.encoder_source, card.encoder_id, self._config.runtime)
        except NoTextTowerError:
            return None

    def _why_not(self, session: Session) -> str | None:
        """Why a session cannot be evaluated, as far as that can be told without its photos."""
        if not session.sound:
            return "malformed"
        if not any(session.tapped):
            return "nothing_tapped"
        return "no_text_tower" if session.query.text and self._text_encoder is None else None

    def _photos(self, uris: Sequence[str]) -> dict[str, Image.Image | Unusable]:
        distinct = list(dict.fromkeys(uris))
        return dict(zip(distinct, self._loader.load(distinct), strict=True))

    def _embedded(
        self, sessions: Sequence[Session], photos: Mapping[str, Image.Image | Unusable]
    ) -> Iterator[EmbeddedQuery]:
        uris = list(dict.fromkeys(uri for session in sessions for uri in session.query.image_uris))
        images = [photo for uri in uris if not isinstance(photo := photos[uri], Unusable)]
        by_uri = dict(zip(uris, self._encoder.embed(images), strict=True))
        texts = list(dict.fromkeys(session.query.text for session in sessions if session.query.text))
        by_text = dict(zip(texts, self._text_encoder.embed(texts), strict=True)) if texts and self._text_encoder else {}
        for session in sessions:
            query = session.query
            pictured = [by_uri[uri] for uri in query.image_uris]
            rows = np.stack(pictured) if pictured else np.empty((0, self._encoder.dims), np.float32)
            yield EmbeddedQuery(session, QueryVectors(rows, by_text[query.text] if query.text else None))


class RankShown(beam.DoFn):
    """A session's query and the embeddings of its shown items → one row of metrics per variant; or the reason for none.

    Variants with fewer dimensions than an index have their own output, `fewer_dims`.
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
            shown = np.stack([items[item_id] for item_id in session.shown])
            by_variant = {"embedding": (query.parts, shown)}
            by_variant |= {
                variant: (query.parts.projected(projection), projection.apply(shown))
                for variant, projection in self._projected.items()
            }
            kind = session.query.kind
            yield TaggedOutput("evaluated", kind)
            weight = session.query.text_weight
            for variant, (parts, rows) in by_variant.items():
                vector = parts.together(self._config.text_weight if weight is None else weight)
                ranked = relevance_by_rank(rows @ vector, session.tapped, session.shown)
                row = {"session_id": session_id, "query": str(kind), "variant": variant, **session_metrics(ranked)}
                yield row if variant in VARIANTS else TaggedOutput("fewer_dims", row)


def _by_metric(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    prefix = metric_prefix(QueryKind(row["query"]))
    return [(f"{prefix}{row['variant']}/{name}", row[name]) for name in METRICS]


def _by_item(batch: pa.RecordBatch) -> Iterator[tuple[str, tuple[int, NDArray[np.float32]]]]:
    present, embeddings = with_embedding(batch)
    item_ids, versions = (batch.column(name).filter(pa.array(present)).to_pylist() for name in ("item_id", "version"))
    yield from zip(item_ids, zip(versions, embeddings, strict=True), strict=True)


def _by_session(grouped: tuple[str, dict[str, Any]]) -> Iterable[tuple[str, tuple[str, NDArray[np.float32]]]]:
    item_id, group = grouped
    for embedding in group["embeddings"]:
        for session_id in group["sessions"]:
            yield session_id, (item_id, embedding)


def _seal(
    found: dict[str, int], *, means: list[tuple[str, float]], config: Config
) -> tuple[dict[str, int], dict[str, Any]]:
    """Reject an evaluation in which sessions went missing, or none could be evaluated."""
    counts = dict.fromkeys((*LEFT_OUT, "read", *map(evaluated_as, QueryKind)), 0) | found
    evaluated = sum(counts[evaluated_as(kind)] for kind in QueryKind)
    came_out = evaluated + sum(counts[reason] for reason in LEFT_OUT)
    if counts["read"] != came_out:
        raise LensError(f"window {config.window}: {counts['read']} sessions went in, {came_out} came out: {counts}")
    if not evaluated:
        raise LensError(
            f"no session of {config.window} can be judged ({counts}): embed the windows of the items that were shown, "
            "or choose a window with taps"
        )
    logger.info("evaluated %s on %s: %s; %s", config.card.space, config.window, counts, dict(means))
    return counts, {"card": config.card.model_dump(), "versions": list(config.versions), "metrics": dict(means)}


def configure(window: Window, card: EmbedderCard, *, afresh: bool = False) -> Config:
    """Check the evaluation's dependencies before it starts.

    Args:
        window: the window whose sessions are evaluated.
        card: the embedder's card.
        afresh: use the current embeddings even if the window was evaluated before.

    Raises:
        LensError: sessions of the window have not landed, or are forgotten; the embedder is incomplete; or the lake cannot
            be reached.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    runtime = encoder_runtime(settings)
    Embedder.load(card, lake, replace(runtime, device="cpu"))
    landed = Landed.find(lake, SESSIONS, _covering(lake, window, settings))
    return Config(
        lake=lake,
        window=window,
        card=card,
        versions=_versions(lake, window, card, afresh=afresh),
        images=ImageSource.of(settings).allowing(image_roots(landed)),
        runtime=runtime,
        text_weight=settings.search_text_weight,
        batch_size=settings.encoder_batch_size,
        landed=landed,
        expected=sum(part.manifest.counts["rows"] for part in landed),
    )


def _covering(lake: Lake, window: Window, settings: Settings) -> list[Window]:
    try:
        return lake.covering(SESSIONS, window)
    except LensError as err:
        days = settings.search_log_days
        if window.start.date() >= kept_since(days, datetime.now(UTC)):
            raise
        raise LensError(
            f"{err}; those from the search service's log are kept for LENS_SEARCH_LOG_DAYS={days} days"
        ) from err


def _versions(lake: Lake, window: Window, card: EmbedderCard, *, afresh: bool) -> tuple[int, int]:
    """The versions of the encoder's table that the window is evaluated by, the first and the last: from when the window began
    to the time of its first evaluation, so that a night that is replayed gives the night's result."""
    items = Embeddings(lake, card.encoder_id).items
    spaces = [space for space in lake.folders(f"{lake.root}/evaluations") if space.startswith(f"{card.encoder_id}-")]
    # The card's own space first.
    for space in sorted(spaces, key=lambda space: space != card.space):
        if afresh or window not in lake.windows(evaluations(space), window):
            continue
        parameters = lake.manifest(evaluations(space), window).parameters
        if parameters["card"]["encoder_id"] != card.encoder_id:
            continue
        first, last = parameters["versions"]
        try:
            items.open(first)
            items.open(last)
        except LensError as err:
            raise LensError(
                f"{window} was evaluated by versions {first} to {last} of {items.path}, which are no longer kept "
                "(LENS_LAKE_RETENTION_DAYS): give --afresh to evaluate it by the embeddings as they are now"
            ) from err
        return first, last
    return version_at(items, window.start), Embeddings(lake, card.encoder_id).require()


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    add_window(arguments, required=True)
    arguments.add_argument(
        "--card", required=True, metavar="JSON", help="the embedder's card, as the registry keeps it"
    )
    arguments.add_argument(
        "--afresh",
        action="store_true",
        help="use the embeddings as they are now, also when the window was evaluated before (default: as they were then)",
    )
    known, beam_arguments = arguments.parse_known_args(argv)
    try:
        card = EmbedderCard.model_validate_json(known.card)
    except ValidationError as err:
        raise LensError(f"--card is no embedder's card: {err.errors()[0]['msg']}") from err
    config = configure(Window.parse(known.window_start, known.window_end), card, afresh=known.afresh)
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline | "Landed windows" >> beam.Create(config.landed), config)


if __name__ == "__main__":
    launch(main)
