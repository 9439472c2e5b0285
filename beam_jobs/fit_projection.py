"""Fit the projection: the lake's embeddings → mergeable moments → eigendecomposition → a projection in the lake.

Reads the newest embedding of each item once; each worker holds no more than a batch of rows and a few d × d matrices.
The fit can be restricted to items last updated in a window (--window_start, --window_end), and to a sample: a share of the
items (--fraction) or approximately a number of them (--rows). Items are sampled by a hash of their ids, so a sample is
reproducible, and contains every smaller one.

    python -m beam_jobs.fit_projection --name 2026-01-31
    python -m beam_jobs.fit_projection --name 2026-01-31 --rows 2000000 --explained_variance 0.9 --whiten
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_jobs.launcher import add_window, launch, optional_window, parser, pipeline_options
from beam_jobs.transforms.sampling import is_sampled
from beam_jobs.transforms.tables import ReadTable
from listing_lens import progress
from listing_lens.embedding.sources import resolve_encoder
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings, embedded_within, embedding_matrix
from listing_lens.lake.fits import Fit, fit_path, save_projection
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake
from listing_lens.settings import load_settings
from models.embedder import EmbedderCard
from models.encoders.files import identify
from models.moments import Moments
from models.projection import check_fit, fit_projection

logger = logging.getLogger(__name__)

_SALT = "fit projection"

Rows = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Config:
    """One fit: its name, which encoder's embeddings it is fitted on, and which axes it keeps.

    Attributes:
        share: share of the items to sample.
        dims, explained_variance: which axes to keep, as `models.projection.fit_projection` takes them; one is None.
        version: version of the encoder's table.
        within: only items last updated in this window; None means all.
        expected: number of embeddings before sampling.
    """

    embeddings: Embeddings
    name: str
    encoder_source: str
    version: int
    within: Window | None
    share: float
    dims: int | None
    explained_variance: float | None
    whiten: bool
    expected: int


def run(pipeline: beam.Pipeline, config: Config) -> beam.PCollection[Fit]:
    """The encoder's embeddings → the `Fit`, once its projection is saved to the lake."""
    columns = ["item_id", "embedding"] if config.share < 1 else ["embedding"]
    return (
        pipeline
        | "Embeddings"
        >> ReadTable(config.embeddings.items, config.version, columns, filter=embedded_within(config.within))
        | "Draw" >> beam.FlatMap(_drawn_rows, config)
        | "Moments" >> beam.CombineGlobally(MergeMoments())
        | "Fit and save" >> beam.Map(_fit_and_save, config)
    )


class MergeMoments(beam.CombineFn):
    """Matrices of rows (n, d) → their moments, merged in any order; None when there are no rows."""

    def create_accumulator(self) -> Moments | None:
        return None

    def add_input(self, merged: Moments | None, rows: Rows) -> Moments:
        moments = Moments.of(rows)
        return moments if merged is None else merged.merge(moments)

    def merge_accumulators(self, accumulators: Iterable[Moments | None]) -> Moments | None:
        present = [accumulator for accumulator in accumulators if accumulator is not None]
        return reduce(Moments.merge, present) if present else None

    def extract_output(self, merged: Moments | None) -> Moments | None:
        return merged


def _drawn_rows(batch: pa.RecordBatch, config: Config) -> Iterator[Rows]:
    rows = embedding_matrix(batch)
    if config.share < 1:
        rows = rows[is_sampled(batch["item_id"], config.share, _SALT)]
    if len(rows):
        yield rows
    progress.advance("read", len(batch), config.expected)


def _fit_and_save(moments: Moments | None, config: Config) -> Fit:
    if moments is None:
        drawn = "" if config.share == 1 else f" among the drawn {config.share:.2%} of the items"
        raise LensError(
            f"{config.embeddings.items.path} holds no embedding{drawn}: embed windows with listings first, or draw more"
        )
    projection = fit_projection(
        moments,
        config.dims,
        explained_variance=config.explained_variance,
        whiten=config.whiten,
        encoder_id=config.embeddings.encoder_id,
    )
    save_projection(config.embeddings.lake, projection)
    fit = Fit(
        card=EmbedderCard(
            encoder_source=config.encoder_source,
            encoder_id=config.embeddings.encoder_id,
            encoder_dims=projection.input_dims,
            projection_id=projection.projection_id,
            dims=projection.dims,
        ),
        rows=projection.rows,
        version=config.version,
        within=config.within.name if config.within else None,
        share=config.share,
        explained_variance=float(projection.explained_variance_ratio.sum()),
    )
    lake = config.embeddings.lake
    lake.write_bytes(fit_path(lake, config.name), fit.model_dump_json(indent=2).encode())
    logger.info(
        "%s fitted on %s embeddings keeps %.1f %%", fit.card.space, f"{fit.rows:,}", 100 * fit.explained_variance
    )
    return fit


def configure(
    name: str,
    encoder_source: str | None,
    within: Window | None,
    *,
    fraction: float | None = None,
    rows: int | None = None,
    dims: int | None = None,
    explained_variance: float | None = None,
    whiten: bool = False,
) -> Config:
    """Find the embeddings to fit on, and the share of the items that makes up the sample.

    Raises:
        LensError: the encoder is unknown; the lake cannot be reached, or has no embeddings of the encoder; they are too few,
            or of too few dimensions, for the fit; or a share or a number is out of range.
    """
    if fraction is not None and not 0 < fraction <= 1:
        raise LensError(f"--fraction is {fraction}: give a share of the items above 0, and 1 at most")
    if rows is not None and rows < 1:
        raise LensError(f"--rows is {rows}: give 1 or more")
    if explained_variance is not None and not 0 < explained_variance < 1:
        raise LensError(f"--explained_variance is {explained_variance}: give a share between 0 and 1")
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    source = resolve_encoder(encoder_source, settings)
    embeddings = Embeddings(lake, identify(source))
    version = embeddings.require()
    expected = embeddings.count(version, embedded_within(within))
    if not expected:
        where = f" of items that were last updated in {within}" if within else ""
        raise LensError(
            f"the lake {lake.root} holds no embeddings of {embeddings.encoder_id}{where} yet: run `lens embed` first"
        )
    dims = settings.projection_dims if dims is None and explained_variance is None else dims
    check_fit(expected if rows is None else min(rows, expected), embeddings.dims(), dims, explained_variance)
    if rows is not None:
        fraction = min(1.0, rows / expected)
    return Config(
        embeddings=embeddings,
        name=name,
        encoder_source=source,
        version=version,
        within=within,
        share=1.0 if fraction is None else fraction,
        dims=dims,
        explained_variance=explained_variance,
        whiten=whiten,
        expected=expected,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    arguments.add_argument("--name", required=True, help="what the fit is known by: fits/NAME.json in the lake")
    arguments.add_argument("--encoder", metavar="SOURCE", help="the encoder (default: LENS_ENCODER)")
    kept = arguments.add_mutually_exclusive_group()
    kept.add_argument("--dims", type=int, help="dimensions to keep (default: LENS_PROJECTION_DIMS)")
    kept.add_argument(
        "--explained_variance",
        type=float,
        metavar="SHARE",
        help="keep as few dimensions as hold this share of the variance",
    )
    arguments.add_argument("--whiten", action="store_true", help="scale every kept axis to the same variance")
    sample = arguments.add_mutually_exclusive_group()
    sample.add_argument("--fraction", type=float, metavar="SHARE", help="fit on this share of the items (default: all)")
    sample.add_argument("--rows", type=int, help="fit on approximately this many rows (default: all)")
    add_window(arguments, required=False)
    known, beam_arguments = arguments.parse_known_args(argv)
    config = configure(
        known.name,
        known.encoder,
        optional_window(known),
        fraction=known.fraction,
        rows=known.rows,
        dims=known.dims,
        explained_variance=known.explained_variance,
        whiten=known.whiten,
    )
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline, config)


if __name__ == "__main__":
    launch(main)
