"""Fit the projection: the lake's embeddings → moments that merge → eigendecomposition → a projection in the lake.

Reads every embedding of one encoder once, and holds no more than a block of rows and a matrix of d × d a worker.

    python -m beam_jobs.fit_projection --name 2026-01-31
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa

from beam_jobs.lake_io import ReadWindows
from beam_jobs.launcher import add_window, launch, optional_window, parser, pipeline_options
from listing_lens import progress
from listing_lens.encoders import resolve_encoder
from listing_lens.errors import LensError
from listing_lens.lake import Lake, embeddings
from listing_lens.projections import Fit, fit_path, save_projection
from listing_lens.records import embedding_matrix
from listing_lens.settings import load_settings
from listing_lens.window import Window
from models.embedder import EmbedderCard
from models.encoder_files import identify
from models.moments import Moments
from models.projection import fit_projection

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """One fit: of which encoder's embeddings in which windows, to how many dimensions, under which name."""

    lake: Lake
    name: str
    encoder_source: str
    encoder_id: str
    windows: tuple[Window, ...]
    dims: int
    expected: int


def run(windows: beam.PCollection, config: Config) -> beam.PCollection:
    """Windows of embeddings → the `Fit`, once its projection is in the lake."""
    return (
        windows
        | "Embeddings" >> ReadWindows(config.lake, embeddings(config.encoder_id), ["embedding"])
        | "Moments" >> beam.Map(_moments_of, total=config.expected)
        | "Merge" >> beam.CombineGlobally(MergeMoments())
        | "Fit and save" >> beam.Map(_fit_and_save, config)
    )


class MergeMoments(beam.CombineFn):
    """Merges moments in any order; None stands for no rows."""

    def create_accumulator(self) -> Moments | None:
        return None

    def add_input(self, merged: Moments | None, element: Moments) -> Moments:
        return element if merged is None else merged.merge(element)

    def merge_accumulators(self, accumulators: Iterable[Moments | None]) -> Moments | None:
        merged = None
        for accumulator in accumulators:
            if accumulator is not None:
                merged = self.add_input(merged, accumulator)
        return merged

    def extract_output(self, merged: Moments | None) -> Moments | None:
        return merged


def _moments_of(batch: pa.RecordBatch, total: int) -> Moments:
    moments = Moments.of(embedding_matrix(batch))
    progress.advance("fitted on", len(batch), total)
    return moments


def _fit_and_save(moments: Moments | None, config: Config) -> Fit:
    if moments is None:
        raise LensError(
            f"the windows of {embeddings(config.encoder_id)} hold no embedding: embed windows with listings first"
        )
    projection = fit_projection(moments, config.dims)
    save_projection(config.lake, projection)
    fit = Fit(
        card=EmbedderCard(
            encoder_source=config.encoder_source,
            encoder_id=config.encoder_id,
            encoder_dims=projection.input_dims,
            projection_id=projection.projection_id,
            dims=projection.dims,
        ),
        rows=projection.rows,
        windows=[window.name for window in config.windows],
        explained_variance=float(projection.explained_variance_ratio.sum()),
    )
    config.lake.write_bytes(fit_path(config.lake, config.name), fit.model_dump_json(indent=2).encode())
    logger.info(
        "%s fitted on %s embeddings keeps %.1f %%", fit.card.space, f"{fit.rows:,}", 100 * fit.explained_variance
    )
    return fit


def configure(name: str, encoder_source: str | None, dims: int | None, within: Window | None) -> Config:
    """Find the windows to fit on.

    Raises:
        LensError: the encoder is unknown, the lake is out of reach, or holds no embeddings of the encoder.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    source = resolve_encoder(encoder_source, settings)
    known_as = identify(source)
    windows = lake.windows(embeddings(known_as), within)
    if not windows:
        where = f"within {within} " if within else ""
        raise LensError(f"the lake {lake.root} holds no embeddings of {known_as} {where}yet: run `lens embed` first")
    expected = sum(lake.manifest(embeddings(known_as), window).counts["embedded"] for window in windows)
    return Config(lake, name, source, known_as, tuple(windows), dims or settings.projection_dims, expected)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    arguments.add_argument("--name", required=True, help="what the fit is known by: fits/NAME.json in the lake")
    arguments.add_argument("--encoder", metavar="SOURCE", help="the encoder (default: LENS_ENCODER)")
    arguments.add_argument("--dims", type=int, help="dimensions to keep (default: LENS_PROJECTION_DIMS)")
    add_window(arguments, required=False)
    known, beam_arguments = arguments.parse_known_args(argv)
    config = configure(known.name, known.encoder, known.dims, optional_window(known))
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline | "Windows" >> beam.Create(config.windows), config)


if __name__ == "__main__":
    launch(main)
