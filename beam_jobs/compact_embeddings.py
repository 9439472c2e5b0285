"""Compact the lake's embeddings: the rows of small windows move to a few packs, and no window is absent for a moment.

Windows whose files are all smaller than --smaller_than are packed, as many together as give files of about 256 MB. A window
stays the window that it was, with its counts and times; one that is embedded again meanwhile stays what that made it. Files
that no manifest has named for two days are removed.

    python -m beam_jobs.compact_embeddings
    python -m beam_jobs.compact_embeddings --encoder models:/listing-encoder@champion --smaller_than 16
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

import apache_beam as beam

from beam_jobs.launcher import add_window, launch, optional_window, parser, pipeline_options
from listing_lens import progress
from listing_lens.encoders import resolve_encoder
from listing_lens.lake.compaction import compact, manifests_of, plan, stored, sweep
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake, embeddings
from listing_lens.settings import load_settings
from models.encoders.files import identify

logger = logging.getLogger(__name__)

_SMALLER_THAN_MB = 64


def run(groups: beam.PCollection, lake: Lake, dataset: str, total: int) -> beam.PCollection:
    """Groups of windows that are packed together → how many windows were packed."""
    return (
        groups
        | "Spread groups" >> beam.Reshuffle()
        | "Pack" >> beam.Map(_compact, lake=lake, dataset=dataset, total=total)
        | "Sum" >> beam.CombineGlobally(sum)
        | "Report" >> beam.Map(_report, dataset=dataset, total=total)
    )


def _compact(group: tuple[Window, ...], lake: Lake, dataset: str, total: int) -> int:
    packed = compact(lake, dataset, group, datetime.now(UTC))
    progress.advance("compacted", len(group), total)
    return packed


def _report(packed: int, dataset: str, total: int) -> int:
    logger.info("%s: %d windows are packed, %d were replaced meanwhile", dataset, packed, total - packed)
    return packed


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end, once an encoder."""
    arguments = parser(__doc__)
    arguments.add_argument("--encoder", metavar="SOURCE", help="only embeddings of this encoder (default: of all)")
    add_window(arguments, required=False)
    arguments.add_argument(
        "--smaller_than",
        type=float,
        default=_SMALLER_THAN_MB,
        metavar="MB",
        help="files of at least so many megabytes stay as they are (default: %(default)s)",
    )
    known, beam_arguments = arguments.parse_known_args(argv)
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    encoder_ids = [identify(resolve_encoder(known.encoder, settings))] if known.encoder else lake.encoder_ids()
    for encoder_id in encoder_ids:
        dataset = embeddings(encoder_id)
        # Listed after the manifests are read: so whatever they name is in the list.
        manifests, sizes = manifests_of(lake, dataset), lake.sizes(dataset)
        groups = plan(manifests, sizes, round(known.smaller_than * 1e6), optional_window(known))
        if groups:
            with beam.Pipeline(options=pipeline_options(settings, beam_arguments)) as pipeline:
                run(pipeline | "Groups" >> beam.Create(groups), lake, dataset, sum(map(len, groups)))
        removed = sweep(lake, dataset, datetime.now(UTC))
        before, now = stored(manifests, sizes), stored(manifests_of(lake, dataset), lake.sizes(dataset))
        logger.info("%s: %s; before: %s; %d unused files were removed", dataset, now, before, removed)


if __name__ == "__main__":
    launch(main)
