"""The fine-tuning program: pairs of the lake → an encoder in the lake, and a comparison with others.

    python -m listing_lens.finetuning train --name NAME --pairs NAME --parent SOURCE --recipe '{"epochs": 5}'
    python -m listing_lens.finetuning compare --name NAME --with pixels:16

On several GPUs, `accelerate launch --num_processes N -m listing_lens.finetuning train …`. Checkpoints lie in
LENS_TRAINING_FOLDER, in a folder of the parent, the pairs and the recipe: started again, the same training continues where it
was killed, or is found to be finished.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from listing_lens.errors import LensError
from listing_lens.finetuning.compare import compare_encoders
from listing_lens.finetuning.train import train_encoder
from listing_lens.settings import load_settings
from models.finetune.recipe import Recipe

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and train or compare."""
    parser = argparse.ArgumentParser(
        prog="python -m listing_lens.finetuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="fine-tune a parent on a sample of pairs")
    training.add_argument(
        "--name", required=True, help="what the training is known by: finetunes/NAME.json in the lake"
    )
    training.add_argument("--pairs", required=True, metavar="NAME", help="the sample that sample_pairs wrote")
    training.add_argument(
        "--parent", metavar="SOURCE", default="", help="the encoder to start from (default: LENS_ENCODER)"
    )
    training.add_argument("--recipe", metavar="JSON", default="{}", help="hyperparameters: models/finetune/recipe.py")
    comparing = commands.add_parser("compare", help="compare a training's encoder with its parent and others")
    comparing.add_argument("--name", required=True, help="the training")
    comparing.add_argument(
        "--with", dest="others", metavar="SOURCE", nargs="*", default=[], help="encoders to compare with"
    )
    known = parser.parse_args(argv)
    settings = load_settings()
    if known.command == "train":
        train_encoder(known.name, known.pairs, known.parent, Recipe.parse(known.recipe), settings)
    else:
        comparison = compare_encoders(known.name, known.others, settings)
        for row in comparison.rows:
            found = row.unseen.metrics
            logger.info("%-60s nDCG@5 %s  recall@10 %s", row.label, found["ndcg@5"], found["recall@10"])
        logger.info(comparison.headline)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "accelerate", "torch"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        main()
    except LensError as err:
        sys.exit(f"error: {err}")
