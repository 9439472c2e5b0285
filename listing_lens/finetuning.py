"""The fine-tuning program: pairs of the lake → an encoder in the lake, and a comparison with others.

    python -m listing_lens.finetuning train --name NAME --pairs NAME --parent SOURCE --recipe '{"epochs": 5}'
    python -m listing_lens.finetuning compare --name NAME --with pixels:16

On several GPUs, `accelerate launch --num_processes N -m listing_lens.finetuning train …`. Checkpoints lie in
LENS_TRAINING_FOLDER, in a folder of the parent, the pairs and the recipe: the same training again goes on where it was
killed, or is found finished.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from listing_lens import progress
from listing_lens.encoders import publish_encoder, resolve_encoder
from listing_lens.errors import LensError
from listing_lens.finetunes import (
    Comparison,
    ComparisonRow,
    Finetune,
    Role,
    Variant,
    load_finetune,
    save_comparison,
    save_finetune,
)
from listing_lens.lake.pairs import PAIR_SESSIONS, SESSION_ITEMS, TRAIN, VALIDATION, PairsInfo, pairs_info
from listing_lens.lake.windows import Lake
from listing_lens.settings import Settings, load_settings
from models import figures
from models.encoder_files import encoder_folder, encoder_id
from models.encoders import Encoder
from models.finetune.recipe import Recipe
from models.finetune.shards import Shards
from models.finetune.training import Outcome, TrainingLog, train
from models.finetune.validation import HeldOutSession, Validation, embed_all, mean_metrics, rank_sessions
from models.moments import Moments
from models.projection import fit_projection
from models.registry import Registry

logger = logging.getLogger(__name__)

# MLflow's client would wait for minutes for a server that is away, at every step that is logged.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

# What a finished training leaves in its folder.
_FINISHED, _HISTORY = "finished.json", "history.jsonl"
# A comparison fits its projections on the photos of at most so many training pairs.
_FITTED_ON = 20_000
_READ_ROWS = 256


# ---- train -----------------------------------------------------------------------------------------------------------


def train_encoder(name: str, pairs_name: str, parent: str, recipe: Recipe, settings: Settings) -> Finetune | None:
    """Fine-tune a parent on a sample of pairs, publish the best encoder to the lake and keep the record.

    Returns:
        The record; None in all but the first of several processes, which only take part in the training.

    Raises:
        LensError: the pairs or the parent cannot be found, or the training ended early.
    """
    lake = Lake(settings.lake)
    lake.check()
    info = pairs_info(lake, pairs_name)
    source = resolve_encoder(parent, settings)
    folder = encoder_folder(source)
    parent_id = encoder_id(source, folder)
    # The number of processes decides the global batch, and with it the number of steps.
    processes = os.environ.get("WORLD_SIZE", "1")
    what = f"{parent_id} {info.fingerprint} {recipe.fingerprint} {processes} {version('listing-lens')}"
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    work = settings.training_folder / key
    work.mkdir(parents=True, exist_ok=True)
    outcome = _finished(work)
    if os.environ.get("RANK", "0") != "0":
        if outcome is None:
            _train(lake, info, folder, recipe, work, _Silence())
        return None
    parameters: dict[str, object] = {"parent_source": source, "parent_id": parent_id, "pairs": info.dataset}
    parameters |= {"pairs_fingerprint": info.fingerprint, **info.counts, **recipe.model_dump(mode="json")}
    with _LiveLog(work / _HISTORY, _Run.start(name, key, parameters, settings)) as log:
        if outcome:
            logger.info("this training is finished already: its encoder is taken from %s", work)
            log.replay()
        else:
            outcome = _train(lake, info, folder, recipe, work, log)
            part = work / f"{_FINISHED}.part"
            part.write_text(json.dumps({**asdict(outcome), "encoder": str(outcome.encoder)}))
            part.rename(work / _FINISHED)
    published = publish_encoder(lake, outcome.encoder, name=f"{_family(parent_id)}-finetuned")
    record = Finetune(
        name=name,
        pairs=pairs_name,
        window=info.window.name,
        pairs_fingerprint=info.fingerprint,
        parent_source=source,
        parent_id=parent_id,
        # A hub's files lie in a folder that is named by their revision.
        parent_revision=folder.name if folder.parent.name == "snapshots" else None,
        recipe=recipe.model_dump(mode="json"),
        encoder_source=published,
        encoder_id=encoder_id(published, encoder_folder(published)),
        mlflow_run_id=log.run.run_id if log.run else None,
        steps=outcome.steps,
        best_step=outcome.best_step,
        stopped=outcome.stopped,
        metrics=outcome.metrics,
    )
    save_finetune(lake, record)
    if not outcome.best_step:
        logger.warning("no validation was better than the parent's own: the encoder is the parent as it was")
    logger.info("%s is trained, %s steps, %s: %s", record.encoder_id, outcome.steps, outcome.stopped, outcome.metrics)
    return record


def _train(lake: Lake, info: PairsInfo, parent: Path, recipe: Recipe, work: Path, log: TrainingLog) -> Outcome:
    shards = Shards.open(lake.filesystem, lake.paths(info.dataset, [info.window], TRAIN))
    held_out = Shards.open(lake.filesystem, lake.paths(info.dataset, [info.window], VALIDATION))
    # Those that show nothing that was trained on come first, where not all are wanted.
    known = sorted(_sessions(lake, info), key=lambda session: (not session.unseen, session.session_id))
    sessions = known[: recipe.validation_sessions]
    wanted = {item_id for session in sessions for item_id in session.shown}
    items = {item_id: image for item_id, image in _items(lake, info) if item_id in wanted}
    validation = Validation(held_out.head(recipe.validation_pairs), sessions, items)
    return train(parent, recipe, shards, validation, work, log)


def _finished(work: Path) -> Outcome | None:
    try:
        found = json.loads((work / _FINISHED).read_text())
    except FileNotFoundError:
        return None
    return Outcome(**{**found, "encoder": work / "best" / "encoder"})


def _family(encoder: str) -> str:
    """An encoder's id without its hash, and without what an earlier training added."""
    return encoder.rpartition("-")[0].removesuffix("-finetuned").removesuffix("-untrained")


# ---- the log of a training ---------------------------------------------------------------------------------------------


class _Silence:
    """The log of a process that is not the first."""

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None: ...

    def validation(self, step: int, metrics: Mapping[str, float], figure: Figure | None) -> None: ...


@dataclass(frozen=True)
class _Run:
    """The training's run in MLflow."""

    registry: Registry
    run_id: str

    @classmethod
    def start(cls, name: str, key: str, parameters: Mapping[str, object], settings: Settings) -> _Run | None:
        """None when no server is configured."""
        if not settings.mlflow_url:
            logger.warning("LENS_MLFLOW_URL is not set: the training is logged here alone")
            return None
        registry = Registry.connect(settings.mlflow_url)
        return cls(registry, registry.start_finetuning(name, parameters, key=key))


class _LiveLog:
    """Says how a training goes: to this log, to a file beside its checkpoints, and to MLflow while it can be reached."""

    def __init__(self, history: Path, run: _Run | None) -> None:
        self.run = run
        self._history = history
        self._done = 0
        if history.exists():
            # A line that a kill left half written would spoil the next one.
            whole = history.read_bytes().rpartition(b"\n")
            history.write_bytes(whole[0] + whole[1])

    def __enter__(self) -> _LiveLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.run:
            with _survives_outages():
                self.run.registry.end(self.run.run_id, "FAILED" if kind else "FINISHED")

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        progress.advance("steps trained", step - self._done, total)
        self._done = step
        self._keep(step, metrics)

    def validation(self, step: int, metrics: Mapping[str, float], figure: Figure | None) -> None:
        logger.info("step %s: %s", step, ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        self._keep(step, metrics)
        if self.run and figure:
            with _survives_outages():
                self.run.registry.log_figure(self.run.run_id, figure, f"retrievals/{step:06d}.png")

    def replay(self) -> None:
        """Log to MLflow what was logged when this training ran; of steps that were made again, the last."""
        if self.run is None:
            return
        kept = [json.loads(line) for line in self._history.read_text().splitlines()]
        by_step = {(line["step"], *line["metrics"]): line for line in kept}
        with _survives_outages():
            for line in by_step.values():
                self.run.registry.log_metrics(self.run.run_id, line["metrics"], line["step"])

    def _keep(self, step: int, metrics: Mapping[str, float]) -> None:
        with self._history.open("a") as file:
            file.write(json.dumps({"step": step, "metrics": dict(metrics)}) + "\n")
        if self.run:
            with _survives_outages():
                self.run.registry.log_metrics(self.run.run_id, metrics, step)


@contextmanager
def _survives_outages() -> Iterator[None]:
    """Days of training are not lost because a server was away for a minute."""
    try:
        yield
    except (MlflowException, OSError) as err:
        logger.warning("MLflow did not take the training's log (%s): %s keeps it as well", err, _HISTORY)


# ---- compare -----------------------------------------------------------------------------------------------------------


def compare_encoders(name: str, others: Sequence[str], settings: Settings) -> Comparison:
    """Rank a training's held-out sessions by its encoder, its parent and others, each alone and with a projection.

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
    sessions = list(_sessions(lake, info))
    if not sessions:
        raise LensError(f"{info.dataset} has no sessions to compare encoders on: sample it with --sessions")
    roles: dict[str, Role] = {record.encoder_source: "fine-tuned", record.parent_source: "parent"}
    for other in others:
        # The parent may be asked for by name as well.
        roles.setdefault(resolve_encoder(other, settings), "compared")
    rows = [
        row
        for source, role in roles.items()
        for row in _judge(
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
    if record.mlflow_run_id and settings.mlflow_url:
        registry = Registry.connect(settings.mlflow_url)
        registry.log_figure(record.mlflow_run_id, comparison_figure(comparison), "comparison.png")
    return comparison


def comparison_figure(comparison: Comparison) -> Figure:
    """Metrics by k, a line a row."""
    means = {f"{row.label}/{name}": value for row in comparison.rows for name, value in row.metrics.items()}
    return figures.metrics_by_k(means, {row.label: row.label for row in comparison.rows})


def _judge(
    encoder: Encoder, role: Role, lake: Lake, info: PairsInfo, sessions: Sequence[HeldOutSession], dims: int
) -> Iterator[ComparisonRow]:
    logger.info("ranking %s sessions by %s", len(sessions), encoder.encoder_id)
    queries = np.stack([e for _, e in embed_all(((s.session_id, s.image) for s in sessions), encoder.embed)])
    items = dict(embed_all(_items(lake, info), encoder.embed))
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


# ---- what the lake holds -----------------------------------------------------------------------------------------------


def _sessions(lake: Lake, info: PairsInfo) -> Iterator[HeldOutSession]:
    for batch in lake.read(info.dataset, [info.window], kind=PAIR_SESSIONS, batch_rows=_READ_ROWS):
        for row in batch.to_pylist():
            yield HeldOutSession(**row | {"shown": tuple(row["shown"]), "tapped": tuple(row["tapped"])})


def _items(lake: Lake, info: PairsInfo) -> Iterator[tuple[str, bytes]]:
    """(item id, encoded image) of all items that the sessions show."""
    for batch in lake.read(info.dataset, [info.window], kind=SESSION_ITEMS, batch_rows=_READ_ROWS):
        yield from zip(batch["item_id"].to_pylist(), batch["image"].to_pylist(), strict=True)


# ---- the command line --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and train or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="fine-tune a parent on a sample of pairs")
    training.add_argument(
        "--name", required=True, help="what the training is known by: finetunes/NAME.json in the lake"
    )
    training.add_argument("--pairs", required=True, metavar="NAME", help="the sample that sample_pairs wrote")
    training.add_argument(
        "--parent", metavar="SOURCE", default="", help="the encoder to begin with (default: LENS_ENCODER)"
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
        for row in compare_encoders(known.name, known.others, settings).rows:
            logger.info("%-60s nDCG@5 %.3f  recall@10 %.3f", row.label, row.metrics["ndcg@5"], row.metrics["recall@10"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "accelerate", "torch"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        main()
    except LensError as err:
        sys.exit(f"error: {err}")
