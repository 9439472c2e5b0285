"""Compare a fine-tuned encoder with its parent and others, on test sessions that neither trained it nor chose its checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

from matplotlib.figure import Figure

from listing_lens import progress
from listing_lens.comparison.embeddings import EmbeddingCache, Vectors, embed_photos
from listing_lens.comparison.records import Comparison, Role
from listing_lens.comparison.table import ComparedSession, Contender, compare, means_of, require_several_products
from listing_lens.embedding.sources import encoder_runtime, resolve_encoder
from listing_lens.errors import LensError
from listing_lens.finetuning.log import log_comparison
from listing_lens.finetuning.records import load_finetune, save_comparison
from listing_lens.finetuning.sessions import held_out_sessions, session_items
from listing_lens.lake.pairs import TEST_SESSIONS, TRAIN, PairsInfo, pairs_info
from listing_lens.lake.windows import Lake
from listing_lens.settings import Settings
from models import figures
from models.encoders.cost import measure_cost
from models.encoders.encoder import Encoder, shared_encoder
from models.finetune.shards import Shards, decode
from models.finetune.validation import HeldOutSession
from models.images import ImageLimits

logger = logging.getLogger(__name__)

# Projections are fitted on the photos of at most this many training pairs.
_FITTED_ON = 20_000
_TIMED_ON = 128


def compare_encoders(name: str, others: Sequence[str], settings: Settings) -> Comparison:
    """Rank a training's test sessions with its encoder, its parent and others, each alone and with a projection.

    The projections are fitted on photos of the training's pairs, as an index's is on photos of its catalog.

    Raises:
        LensError: the training has not finished, an encoder cannot be loaded, or the sample has no unseen test sessions, or of
            one product only.
    """
    lake = Lake(settings.lake)
    record = load_finetune(lake, name)
    info = pairs_info(lake, record.pairs)
    if info.fingerprint != record.pairs_fingerprint:
        raise LensError(
            f"{info.dataset} is {info.fingerprint} now, but {name} was trained on {record.pairs_fingerprint}: "
            "sample the pairs as they were, or train on these"
        )
    sessions = list(held_out_sessions(lake, info, TEST_SESSIONS))
    if not sessions:
        raise LensError(f"{info.dataset} has no sessions to compare encoders on: sample it with --sessions")
    require_several_products([session.groups for session in sessions if session.unseen])
    roles: dict[str, Role] = {record.encoder_source: "fine-tuned", record.parent_source: "parent"}
    for other in others:
        # The parent may be asked for by name as well.
        roles.setdefault(resolve_encoder(other, settings), "compared")
    runtime = encoder_runtime(settings)
    encoders = [shared_encoder(source, runtime) for source in roles]
    contenders = _contenders(encoders, list(roles.values()), lake, info, sessions, settings)
    rows = compare(list(contenders), [_compared(session) for session in sessions])
    comparison = Comparison(name=name, rows=rows)
    save_comparison(lake, comparison)
    log_comparison(record, comparison_figure(comparison), settings)
    return comparison


def comparison_figure(comparison: Comparison) -> Figure:
    """Metrics by k on the unseen sessions, with one line per row."""
    return figures.metrics_by_k(dict(means_of(comparison.rows)), {row.label: row.label for row in comparison.rows})


def _contenders(
    encoders: Sequence[Encoder],
    roles: Sequence[Role],
    lake: Lake,
    info: PairsInfo,
    sessions: Sequence[HeldOutSession],
    settings: Settings,
) -> Iterator[Contender]:
    cache = EmbeddingCache(settings.home / "comparison")
    limits = ImageLimits(settings.image_max_bytes, settings.image_max_pixels)

    def embed(photos: Iterator[tuple[str, bytes]], stage: str) -> list[Vectors]:
        advance = partial(progress.advance, stage)
        return embed_photos(photos, encoders, limits, cache, batch_size=settings.encoder_batch_size, advance=advance)

    logger.info("ranking %s sessions by %s", len(sessions), ", ".join(encoder.encoder_id for encoder in encoders))
    queries = embed(((session.session_id, session.image) for session in sessions), "queries embedded")
    shown = {item_id for session in sessions for item_id in session.shown}
    items = embed(
        ((item_id, image) for item_id, image in session_items(lake, info) if item_id in shown), "items embedded"
    )
    shards = Shards.open(lake.filesystem, lake.paths(info.dataset, [info.window], TRAIN))
    pairs = islice(shards.read(shards.groups), _FITTED_ON)
    catalogs = embed(((pair.item_id, pair.image) for pair in pairs), "training photos embedded")
    timed_on = [decode(session.image) for session in sessions[:_TIMED_ON]]
    for encoder, role, *vectors in zip(encoders, roles, queries, items, catalogs, strict=True):
        of_queries, of_items, of_catalog = vectors
        cost = measure_cost(encoder, timed_on, time.perf_counter)
        alone = Contender(role, encoder.encoder_id, encoder.source, "embedding", of_queries, of_items, cost)
        yield alone
        yield alone.projected_to(settings.projection_dims, list(of_catalog.values()))


def _compared(session: HeldOutSession) -> ComparedSession:
    return ComparedSession(session.session_id, session.shown, session.tapped, session.groups, not session.unseen)
