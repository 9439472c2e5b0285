"""Re-drive dead letters: retry the listings that could not be embedded.

Transient failures (a server that did not answer, or took too long) are retried with exponential backoff: after 15 minutes,
then with a pause that doubles each time, up to eight attempts in all. With --all, every dead letter of a listing is retried,
whatever its reason and however recent its last attempt: for example, once an image server has been repaired. A listing that
succeeds is merged into the table and its letter removed; one that fails again keeps its letter, with the new reason. A letter
of a listing that has a newer version by now is removed without a retry.

    python -m beam_jobs.redrive_dead_letters
    python -m beam_jobs.redrive_dead_letters --encoder models:/listing-encoder/3 --all
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import apache_beam as beam

from beam_jobs.launcher import launch, parser, pipeline_options
from beam_jobs.transforms.embedding import OUTCOMES, Arrival, Embedding, embed_newest
from beam_jobs.transforms.merging import Outcome, merge, outcome_of
from listing_lens.embedding.sources import resolve_encoder
from listing_lens.errors import LensError
from listing_lens.lake.dead_letters import DeadLetters, Letter
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.settings import load_settings
from models.encoders.files import identify

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """One run: which letters to retry, and how they are embedded."""

    letters: tuple[Letter, ...]
    embedding: Embedding


def run(letters: beam.PCollection[Letter], config: Config) -> beam.PCollection[Outcome]:
    """`Letter`s → the `Outcome`, once successes are merged into the table and the letters of failures are updated."""
    arrivals = letters | "Listings" >> beam.FlatMap(_arrivals)
    staged = embed_newest(arrivals, config.embedding)
    return outcome_of(letters.pipeline, staged) | "Check and merge" >> beam.Map(_check_and_merge, config)


def _arrivals(letter: Letter) -> Sequence[Arrival]:
    return [Arrival(letter.listing, letter.window, letter.attempts)] if letter.listing else []


def _check_and_merge(outcome: Outcome, config: Config) -> Outcome:
    total = outcome.summary.total()
    came_out = sum(total[name] for name in OUTCOMES)
    if len(config.letters) != came_out:
        raise LensError(f"{len(config.letters)} dead letters went in, {came_out} came out: {dict(total)}")
    stage = config.embedding.stage
    merge(outcome, stage)
    # Listings of which the table now holds the same version, or a newer one, are settled too.
    failed = {letter.key for letter in outcome.letters}
    answered = {letter.item_id: letter.version for letter in config.letters if letter.key not in failed}
    DeadLetters(stage.embeddings).settle(answered)
    logger.info(
        "%d dead letters of %s were tried again: %s", len(config.letters), stage.embeddings.encoder_id, dict(total)
    )
    return outcome


def configure(encoder_source: str | None = None, *, all_letters: bool = False) -> Config:
    """Find the letters to retry.

    Args:
        encoder_source: the encoder whose letters are retried; None means LENS_ENCODER.
        all_letters: also retry permanent failures, exhausted letters and those not due yet.

    Raises:
        LensError: the encoder is unknown, or the lake cannot be reached.
    """
    settings = load_settings()
    lake = Lake(settings.lake)
    lake.check()
    source, now = resolve_encoder(encoder_source, settings), datetime.now(UTC)
    letters = tuple(DeadLetters(Embeddings(lake, identify(source))).to_try(now, every=all_letters))
    windows = {letter.window for letter in letters}
    landed = [part for part in lake.windows(LISTINGS) if any(part.overlaps(window) for window in windows)]
    roots = lake.image_roots(LISTINGS, landed)
    return Config(letters, Embedding.configure(lake, source, roots, len(letters), settings, now))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the pipeline to its end."""
    arguments = parser(__doc__)
    arguments.add_argument("--encoder", metavar="SOURCE", help="whose dead letters (default: LENS_ENCODER)")
    arguments.add_argument(
        "--all",
        action="store_true",
        help="also permanent failures, exhausted letters and those not due yet",
    )
    known, beam_arguments = arguments.parse_known_args(argv)
    config = configure(known.encoder, all_letters=known.all)
    if not config.letters:
        logger.info("no dead letter of %s is due", config.embedding.embeddings.encoder_id)
        return
    with beam.Pipeline(options=pipeline_options(load_settings(), beam_arguments)) as pipeline:
        run(pipeline | "Letters" >> beam.Create(config.letters), config)
    stage = config.embedding.stage
    stage.embeddings.lake.remove_folder(stage.folder)


if __name__ == "__main__":
    launch(main)
