"""Compare a fine-tuned encoder with its parent and others, on search sessions that were held out of its training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from listing_lens.embedding.sources import resolve_encoder
from listing_lens.errors import LensError
from listing_lens.finetuning.log import log_comparison
from listing_lens.finetuning.records import Comparison, ComparisonRow, Role, Variant, load_finetune, save_comparison
from listing_lens.finetuning.sessions import held_out_sessions, session_items
from listing_lens.lake.pairs import TRAIN, PairsInfo, pairs_info
from listing_lens.lake.windows import Lake
from listing_lens.settings import Settings
from models import figures
from models.encoders.encoder import Encoder
from models.finetune.shards import Shards
from models.finetune.validation import HeldOutSession, embed_all, mean_metrics, rank_sessions
from models.moments import Moments
from models.projection import fit_projection

logger = logging.getLogger(__name__)

# Projections are fitted on the photos of at most this many training pairs.
_FITTED_ON = 20_000


def compare_encoders(name: str, others: Sequence[str], settings: Settings) -> Comparison:
    """Rank a training's held-out sessions with its encoder, its parent and others, each alone and with a projection.

    The projections are fitted on photos of the training's pairs, as an index's is on photos of its catalog.

    Raises:
        LensError: the training has not finished, an encoder cannot be loaded, or the sample has no sessions.
    """
    lake = Lake(settings.lake)
    record = load_finetune(lake, name)
    info = pairs_info(lake, record.pairs)
    if info.fingerprint != record.pairs_fingerprint:
        raise LensError(
            f"{info.dataset} is {info.fingerprint} now, but {name} was trained on {record.pairs_fingerprint}: "
            "sample the pairs as they were, or train on these"
        )
    sessions = list(held_out_sessions(lake, info))
    if not sessions:
        raise LensError(f"{info.dataset} has no sessions to compare encoders on: sample it with --sessions")
    roles: dict[str, Role] = {record.encoder_source: "fine-tuned", record.parent_source: "parent"}
    for other in others:
        # The parent may be asked for by name as well.
        roles.setdefault(resolve_encoder(other, settings), "compared")
    rows = [
        row
        for source, role in roles.items()
        for row in _rows_of(
            Encoder.load(source, trusted_code=settings.encoder_trusted_code),
            role,
            lake,
            info,
            sessions,
            settings.projection_dims,
        )
    ]
    comparison = Comparison(name=name, rows=tuple(rows))
    save_comparison(lake, comparison)
    log_comparison(record, comparison_figure(comparison), settings)
    return comparison


def comparison_figure(comparison: Comparison) -> Figure:
    """Metrics by k, with one line per row."""
    means = {f"{row.label}/{name}": value for row in comparison.rows for name, value in row.metrics.items()}
    return figures.metrics_by_k(means, {row.label: row.label for row in comparison.rows})


def _rows_of(
    encoder: Encoder, role: Role, lake: Lake, info: PairsInfo, sessions: Sequence[HeldOutSession], dims: int
) -> Iterator[ComparisonRow]:
    logger.info("ranking %s sessions by %s", len(sessions), encoder.encoder_id)
    queries = np.stack([e for _, e in embed_all(((s.session_id, s.image) for s in sessions), encoder.embed)])
    items = dict(embed_all(session_items(lake, info), encoder.embed))
    shards = Shards.open(lake.filesystem, lake.paths(info.dataset, [info.window], TRAIN))
    photos = ((pair.item_id, pair.image) for pair in islice(shards.read(shards.groups), _FITTED_ON))
    catalog = np.stack([embedding for _, embedding in embed_all(photos, encoder.embed)])
    projection = fit_projection(Moments.of(catalog), min(dims, encoder.dims, len(catalog) - 1))
    names, vectors = list(items), np.stack(list(items.values()))
    spaces: list[tuple[Variant, NDArray[np.float32], NDArray[np.float32]]] = [
        ("embedding", queries, vectors),
        ("projected", projection.apply(queries), projection.apply(vectors)),
    ]
    for variant, photo_vectors, item_vectors in spaces:
        results = rank_sessions(sessions, photo_vectors, dict(zip(names, item_vectors, strict=True)))
        unseen = [results[session.session_id] for session in sessions if session.unseen]
        yield ComparisonRow(
            encoder_id=encoder.encoder_id,
            encoder_source=encoder.source,
            role=role,
            variant=variant,
            dims=item_vectors.shape[1],
            sessions=len(results),
            metrics=mean_metrics(results.values()),
            unseen_sessions=len(unseen),
            unseen_metrics=mean_metrics(unseen),
        )
