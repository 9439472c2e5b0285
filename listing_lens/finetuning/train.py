"""Fine-tune a parent on a sample of pairs, and publish the best encoder to the lake with its record.

Checkpoints lie in LENS_TRAINING_FOLDER, in a folder of the parent, the pairs and the recipe: started again, the same training
continues where it was killed, or is found to be finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from listing_lens.embedding.sources import publish_encoder, resolve_encoder
from listing_lens.finetuning.log import HISTORY, LiveLog, MlflowRun, Silence
from listing_lens.finetuning.records import Finetune, save_finetune
from listing_lens.finetuning.sessions import held_out_sessions, session_items
from listing_lens.lake.pairs import TRAIN, VALIDATION, VALIDATION_SESSIONS, PairsInfo, pairs_info
from listing_lens.lake.windows import Lake
from listing_lens.settings import Settings
from models.encoders.files import encoder_folder, encoder_id
from models.finetune.recipe import Machine, Recipe
from models.finetune.shards import Shards
from models.finetune.training import Outcome, TrainingLog, train
from models.finetune.validation import Validation

logger = logging.getLogger(__name__)

# What a finished training leaves in its folder.
_FINISHED = "finished.json"


def train_encoder(name: str, pairs_name: str, parent: str, recipe: Recipe, settings: Settings) -> Finetune | None:
    """Fine-tune a parent on a sample of pairs, publish the best encoder to the lake and keep the record.

    If no validation is better than the parent's, the encoder of the record is the parent, and nothing is published.

    Returns:
        The record; None in all but the first of several processes: the others only take part in the training.

    Raises:
        LensError: the pairs or the parent cannot be found, or the training ended early.
    """
    lake = Lake(settings.lake)
    lake.check()
    info = pairs_info(lake, pairs_name)
    source = resolve_encoder(parent, settings)
    folder = encoder_folder(source)
    parent_id = encoder_id(source, folder)
    # What computes it is not part of its name: another machine continues it.
    what = f"{parent_id} {info.fingerprint} {recipe.fingerprint} {version('listing-lens')}"
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    work = settings.training_folder / key
    work.mkdir(parents=True, exist_ok=True)
    outcome, machine = _finished(work), _machine(settings)
    if os.environ.get("RANK", "0") != "0":
        if outcome is None:
            _train(lake, info, folder, recipe, work, Silence(), machine)
        return None
    parameters: dict[str, object] = {"parent_source": source, "parent_id": parent_id, "pairs": info.dataset}
    parameters |= {"pairs_fingerprint": info.fingerprint, **info.counts, **recipe.model_dump(mode="json")}
    with LiveLog(work / HISTORY, MlflowRun.start(name, key, parameters, settings)) as log:
        if outcome:
            logger.info("this training is finished already: its encoder is taken from %s", work)
            log.replay()
        else:
            outcome = _train(lake, info, folder, recipe, work, log, machine)
            part = work / f"{_FINISHED}.part"
            part.write_text(json.dumps({**asdict(outcome), "encoder": str(outcome.encoder)}))
            part.rename(work / _FINISHED)
    if outcome.best_step:
        published = publish_encoder(lake, outcome.encoder, name=f"{_family(parent_id)}-finetuned")
        made = encoder_id(published, encoder_folder(published))
    else:
        logger.warning("no validation was better than the parent's own: the encoder is the parent as it was")
        published, made = source, parent_id
    record = Finetune(
        name=name,
        pairs=pairs_name,
        window=info.window.name,
        pairs_fingerprint=info.fingerprint,
        parent_source=source,
        parent_id=parent_id,
        # A hub's files are in a folder named after their revision.
        parent_revision=folder.name if folder.parent.name == "snapshots" else None,
        recipe=recipe.model_dump(mode="json"),
        encoder_source=published,
        encoder_id=made,
        mlflow_run_id=log.run.run_id if log.run else None,
        steps=outcome.steps,
        best_step=outcome.best_step,
        stopped=outcome.stopped,
        metrics=outcome.metrics,
    )
    save_finetune(lake, record)
    logger.info("%s is trained, %s steps, %s: %s", record.encoder_id, outcome.steps, outcome.stopped, outcome.metrics)
    return record


def _train(
    lake: Lake, info: PairsInfo, parent: Path, recipe: Recipe, work: Path, log: TrainingLog, machine: Machine
) -> Outcome:
    shards = Shards.open(lake.filesystem, lake.paths(info.dataset, [info.window], TRAIN))
    held_out = Shards.open(lake.filesystem, lake.paths(info.dataset, [info.window], VALIDATION))
    # Sessions that show nothing from training come first, in case not all are used.
    known = sorted(
        held_out_sessions(lake, info, VALIDATION_SESSIONS),
        key=lambda session: (not session.unseen, session.session_id),
    )
    sessions = known[: recipe.validation_sessions]
    wanted = {item_id for session in sessions for item_id in session.shown}
    items = {item_id: image for item_id, image in session_items(lake, info) if item_id in wanted}
    validation = Validation(held_out.head(recipe.validation_pairs), sessions, items)
    return train(parent, recipe, shards, validation, work, log, machine)


def _machine(settings: Settings) -> Machine:
    return Machine(
        readers=settings.training_readers,
        micro_batch_size=settings.training_micro_batch_size or None,
        gradient_checkpointing=settings.training_gradient_checkpointing,
        checkpoint_every=settings.training_checkpoint_every,
    )


def _finished(work: Path) -> Outcome | None:
    try:
        found = json.loads((work / _FINISHED).read_text())
    except FileNotFoundError:
        return None
    return Outcome(**{**found, "encoder": work / "best" / "encoder"})


def _family(encoder: str) -> str:
    """An encoder's id without its hash and without the suffix that an earlier training added."""
    return encoder.rpartition("-")[0].removesuffix("-finetuned")
