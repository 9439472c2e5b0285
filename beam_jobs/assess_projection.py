"""Assess a fitted projection: how well it preserves exact search, and how far it is from the previous one.

A sample of the encoder's items, excluding sold and deleted ones, is searched exactly, with the full embeddings and with the
projection at several dimensions; the share of neighbours that the projection finds again is its recall. The previous
projection, if given, is evaluated on the same items, and the principal angles between the two subspaces are computed, so that
an engineer can decide whether the fit is worth an index rebuild. Items are sampled by a hash of their ids, with a different
salt from the fit's.

    python -m beam_jobs.assess_projection --name 2026-01-31 --previous 1f2e3d4c
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_jobs.launcher import launch, parser, pipeline_options
from beam_jobs.transforms.sampling import is_sampled
from beam_jobs.transforms.tables import ReadTable
from listing_lens import progress
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings, embedded_within, embedding_matrix
from listing_lens.lake.fits import (
    CUTOFFS,
    HEADLINE,
    HEADLINE_K,
    Assessment,
    Change,
    Quality,
    assessment_path,
    load_fit,
    load_projection,
)
from listing_lens.lake.windows import Lake
from listing_lens.settings import load_settings
from models.projection import Projection, prefix_dims
from models.projection_quality import nearest, neighbour_recall, principal_angles, scores, variance_held
from models.sampling import sample_number

logger = logging.getLogger(__name__)

_SALT = "assess projection"

# Dimensions → metric ("recall@10") → its value for each query (q,).
Recalls = dict[int, dict[str, NDArray[np.float64]]]


@dataclass(frozen=True)
class Config:
    """One assessment: which fit, compared with which projection (if any), on what share of an encoder's items."""

    embeddings: Embeddings
    name: str
    version: int
    share: float
    queries: int
    projection_id: str
    previous_id: str | None
    expected: int


def run(pipeline: beam.Pipeline, config: Config) -> beam.PCollection[Assessment]:
    """The encoder's embeddings → the `Assessment`, once it is saved to the lake."""
    return (
        pipeline
        | "Embeddings"
        >> ReadTable(config.embeddings.items, config.version, ["item_id", "embedding"], filter=embedded_within(None))
        | "Draw" >> beam.FlatMap(_drawn, config)
        | "Gather" >> beam.combiners.ToDict()
        | "Assess and save" >> beam.Map(_assess_and_save, config)
    )


def _drawn(batch: pa.RecordBatch, config: Config) -> Iterator[tuple[str, NDArray[np.float32]]]:
    drawn = np.flatnonzero(is_sampled(batch["item_id"], config.share, _SALT))
    # Copies: a view would keep the whole batch alive.
    found = embedding_matrix(batch)[drawn]
    progress.advance("read", len(batch), config.expected)
    yield from zip(batch["item_id"].take(pa.array(drawn)).to_pylist(), found, strict=True)


def _assess_and_save(sample: Mapping[str, NDArray[np.float32]], config: Config) -> Assessment:
    if len(sample) <= HEADLINE_K:
        raise LensError(
            f"{len(sample)} items were drawn from {config.embeddings.items.path}, too few to assess a projection on: "
            "embed more windows, or raise --items"
        )
    item_ids = sorted(sample, key=lambda item_id: (sample_number(_SALT, item_id), item_id))
    vectors = np.stack([sample[item_id] for item_id in item_ids])
    lake, encoder_id = config.embeddings.lake, config.embeddings.encoder_id
    fitted = load_projection(lake, config.projection_id, encoder_id)
    previous = load_projection(lake, config.previous_id, encoder_id) if config.previous_id else None
    assessment = assess(vectors, min(config.queries, len(vectors)), fitted, previous)
    lake.write_bytes(assessment_path(lake, config.name), assessment.model_dump_json(indent=2).encode())
    logger.info("%s on %s items: %s", config.projection_id, f"{assessment.items:,}", assessment.advice)
    return assessment


def assess(vectors: NDArray[np.float32], queries: int, fitted: Projection, previous: Projection | None) -> Assessment:
    """Evaluate a projection and the previous one on embeddings (n, d) in random order, the first of which are the queries.

    Raises:
        LensError: a projection expects embeddings of a different dimension.
    """
    asked, cutoffs = np.arange(queries), [k for k in CUTOFFS if k < len(vectors)]
    exact = scores(vectors, asked, nearest(vectors, asked, max(cutoffs)))

    def recall(searched: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        found = scores(vectors, asked, nearest(searched, asked, max(cutoffs)))
        return {f"recall@{k}": neighbour_recall(found, exact, k) for k in cutoffs}

    def recalls(projection: Projection) -> Recalls:
        by_dims = (*prefix_dims(projection.dims), projection.dims)
        return {dims: recall(projection.prefix(dims).apply(vectors)) for dims in by_dims}

    now = recalls(fitted)
    change = None
    if previous is not None:
        before = recalls(previous)
        gains = now[fitted.dims][HEADLINE] - before[previous.dims][HEADLINE]
        angles = principal_angles(fitted, previous)
        change = Change(
            before=_quality(previous, before),
            largest_angle_degrees=float(angles.max()),
            mean_angle_degrees=float(angles.mean()),
            variance_held=variance_held(fitted, previous),
            gain=float(gains.mean()),
            gain_error=float(gains.std(ddof=1) / np.sqrt(queries)),
        )
    return Assessment(
        items=len(vectors),
        queries=queries,
        fitted=_quality(fitted, now),
        centred=float(recall(_about_mean(vectors, fitted))[HEADLINE].mean()),
        change=change,
    )


def _quality(projection: Projection, recalls: Recalls) -> Quality:
    means = {dims: {name: float(of.mean()) for name, of in recall.items()} for dims, recall in recalls.items()}
    return Quality(projection_id=projection.projection_id, dims=projection.dims, recall=means)


def _about_mean(vectors: NDArray[np.float32], projection: Projection) -> NDArray[np.float32]:
    """Embeddings (n, d) centred on a projection's mean, at unit length: what it would output if it kept every axis."""
    moved: NDArray[np.float32] = vectors - projection.mean.astype(np.float32)
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    moved /= np.where(lengths > 0, lengths, 1)
    return moved


def configure(name: str, previous_id: str | None, items: int, queries: int) -> Config:
    """Find the result of a fit, and the current embeddings of its encoder.

    Raises:
        LensError: no such fit has finished, the lake cannot be reached, or there are no items or queries to sample.
    """
    # A single query has no standard error.
    for option, value, least in (("items", items, 1), ("queries", queries, 2)):
        if value < least:
            raise LensError(f"--{option} is {value}: give {least} or more")
    lake = Lake(load_settings().lake)
    lake.check()
    card = load_fit(lake, name).card
    embeddings = Embeddings(lake, card.encoder_id)
    version = embeddings.require()
    expected = embeddings.count(version, embedded_within(None))
    return Config(
        embeddings=embeddings,
        name=name,
        version=version,
        share=min(1.0, items / max(expected, 1)),
        queries=queries,
        projection_id=card.projection_id,
        previous_id=previous_id,
        expected=expected,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    arguments.add_argument("--name", required=True, help="the fit, as fit_projection was told to call it")
    arguments.add_argument("--previous", metavar="PROJECTION_ID", help="the projection to compare with (default: none)")
    arguments.add_argument(
        "--items",
        type=int,
        default=20_000,
        help="approximate number of items to search (default: %(default)s)",
    )
    arguments.add_argument(
        "--queries", type=int, default=500, help="number of these used as queries (default: %(default)s)"
    )
    known, beam_arguments = arguments.parse_known_args(argv)
    config = configure(known.name, known.previous, known.items, known.queries)
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline, config)


if __name__ == "__main__":
    launch(main)
