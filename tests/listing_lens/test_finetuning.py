from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from listing_lens.errors import LensError
from listing_lens.finetunes import load_comparison, load_finetune
from listing_lens.finetuning import compare_encoders, train_encoder
from listing_lens.lake.pairs import (
    PAIR_SCHEMA,
    PAIR_SESSION_SCHEMA,
    PAIR_SESSIONS,
    SESSION_ITEM_SCHEMA,
    SESSION_ITEMS,
    TRAIN,
    VALIDATION,
    pairs,
)
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake, Manifest
from listing_lens.settings import Settings, load_settings
from models.demo_encoder import save_untrained_siglip
from models.encoders import Encoder
from models.finetune.recipe import Recipe
from models.registry import Registry

WINDOW = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 220), "yellow": (230, 200, 20)}
RECIPE = Recipe(
    epochs=2, batch_size=8, learning_rate=1e-3, precision="no", readers=0, validate_every=3, checkpoint_every=2
)


def photo(colour: str, seed: int) -> bytes:
    """A JPEG of one colour with noise, so that no two are the same."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal(COLOURS[colour], 12, (100, 100, 3)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def pair(number: int) -> dict[str, object]:
    colour = list(COLOURS)[number % len(COLOURS)]
    return {
        "item_id": f"m{number}",
        "title": f"{colour} mug {number}",
        "category": ["Home"],
        "product_id": None,
        "image": photo(colour, number),
    }


def write_sample(lake: Lake, name: str, *, sessions: int = 6, fingerprint: str = "0123456789abcdef") -> None:
    """24 training pairs, 8 of validation, and sessions whose tapped items are of the photo's colour."""
    items = [pair(number) for number in range(100, 108)]
    searches = [
        {
            "session_id": f"s{number}",
            "image": photo(list(COLOURS)[number % 4], 1000 + number),
            "shown": [item["item_id"] for item in items],
            "tapped": [place % 4 == number % 4 for place in range(8)],
            "unseen": number % 2 == 0,
        }
        for number in range(sessions)
    ]
    tables = {
        TRAIN: pa.Table.from_pylist([pair(number) for number in range(24)], PAIR_SCHEMA),
        VALIDATION: pa.Table.from_pylist([pair(number) for number in range(50, 58)], PAIR_SCHEMA),
        PAIR_SESSIONS: pa.Table.from_pylist(searches, PAIR_SESSION_SCHEMA),
        SESSION_ITEMS: pa.Table.from_pylist(
            [{key: item[key] for key in ("item_id", "image")} for item in items], SESSION_ITEM_SCHEMA
        ),
    }
    for kind, table in tables.items():
        with lake.open_for_writing(pairs(name), WINDOW, f"{kind}.parquet") as file:
            pq.write_table(table, file)
    lake.commit(
        Manifest(
            dataset=pairs(name),
            window=WINDOW.name,
            files={kind: [f"{kind}.parquet"] for kind in tables},
            counts={kind: len(table) for kind, table in tables.items()},
            parameters={"fingerprint": fingerprint},
            created_at=datetime(2026, 1, 3, tzinfo=UTC),
        )
    )


@dataclass(frozen=True)
class Place:
    """A lake with a sample, and where trainings keep their checkpoints."""

    lake: Lake
    parent: str
    settings: Settings


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> str:
    titles = [f"{colour} mug" for colour in COLOURS]
    return str(save_untrained_siglip(tmp_path_factory.mktemp("parents") / "small-untrained", titles))


@pytest.fixture
def place(tmp_path: Path, parent: str) -> Place:
    lake = Lake(str(tmp_path / "lake"))
    write_sample(lake, "mugs")
    settings = load_settings(lake=lake.root, training_folder=tmp_path / "finetune", projection_dims=4)
    return Place(lake, parent, settings)


class TestATraining:
    def test_leaves_an_encoder_in_the_lake_and_its_record(self, place: Place) -> None:
        record = train_encoder("first", "mugs", place.parent, RECIPE, place.settings)
        assert record == load_finetune(place.lake, "first")
        assert record is not None
        assert record.encoder_source.startswith(f"{place.lake.root}/encoders/small-finetuned-")
        assert record.encoder_source.endswith(record.encoder_id)
        encoder = Encoder.load(record.encoder_source)
        assert encoder.encoder_id == record.encoder_id
        assert encoder.encoder_id != record.parent_id == Encoder.load(place.parent).encoder_id
        assert record.pairs_fingerprint == "0123456789abcdef"
        assert record.steps == 6
        assert record.best_step in (0, 3, 6)
        assert record.metrics.keys() >= {"titles/recall@10", "sessions/ndcg@5", "unseen/ndcg@5"}
        names = {path.name for path in Path(record.encoder_source).iterdir()}
        assert names >= {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"}
        assert not [name for name in names if name.endswith((".bin", ".pkl", ".pt"))]

    def test_again_is_found_finished(self, place: Place, tmp_path: Path) -> None:
        first = train_encoder("first", "mugs", place.parent, RECIPE, place.settings)
        [history] = place.settings.training_folder.glob("*/history.jsonl")
        before = history.read_bytes()
        # In another lake too, as when a marketplace is made anew.
        other = Lake(str(tmp_path / "other"))
        write_sample(other, "mugs")
        again = train_encoder(
            "again", "mugs", place.parent, RECIPE, place.settings.model_copy(update={"lake": other.root})
        )
        assert first is not None
        assert again is not None
        assert (again.encoder_id, again.metrics) == (first.encoder_id, first.metrics)
        assert history.read_bytes() == before
        assert Encoder.load(again.encoder_source).encoder_id == first.encoder_id

    def test_with_another_recipe_is_another(self, place: Place) -> None:
        train_encoder("first", "mugs", place.parent, RECIPE, place.settings)
        train_encoder("second", "mugs", place.parent, RECIPE.model_copy(update={"seed": 1}), place.settings)
        assert len(list(place.settings.training_folder.iterdir())) == 2
        assert [load_finetune(place.lake, name).recipe["seed"] for name in ("first", "second")] == [0, 1]

    def test_is_logged_live(self, place: Place, mlflow_url: str) -> None:
        settings = place.settings.model_copy(update={"mlflow_url": mlflow_url})
        record = train_encoder("logged", "mugs", place.parent, RECIPE.model_copy(update={"seed": 5}), settings)
        assert record is not None
        client = Registry.connect(mlflow_url).client
        run = client.get_run(record.mlflow_run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["pairs_fingerprint"] == record.pairs_fingerprint
        logged = {"loss", "learning_rate", "temperature", "bias", "gradient_norm", "images_per_s", "memory_gb"}
        assert run.data.metrics.keys() >= logged | {"sessions/ndcg_at_5"}
        validated = client.get_metric_history(record.mlflow_run_id, "sessions/ndcg_at_5")
        assert [metric.step for metric in validated] == [0, 3, 6]
        pictures = client.list_artifacts(record.mlflow_run_id, "retrievals")
        assert [Path(picture.path).name for picture in pictures] == ["000000.png", "000003.png", "000006.png"]

    def test_found_finished_is_logged_from_what_was_kept(self, place: Place, mlflow_url: str) -> None:
        other = RECIPE.model_copy(update={"seed": 6})
        train_encoder("first", "mugs", place.parent, other, place.settings)
        [history] = place.settings.training_folder.glob("*/history.jsonl")
        with history.open("a") as file:
            file.write('{"step": 7, "metr')
        settings = place.settings.model_copy(update={"mlflow_url": mlflow_url})
        record = train_encoder("again", "mugs", place.parent, other, settings)
        assert record is not None
        validated = Registry.connect(mlflow_url).client.get_metric_history(record.mlflow_run_id, "sessions/ndcg_at_5")
        assert [metric.step for metric in validated] == [0, 3, 6]

    def test_that_fails_says_why_and_what_is_kept(self, place: Place, mlflow_url: str) -> None:
        settings = place.settings.model_copy(update={"mlflow_url": mlflow_url})
        wild = RECIPE.model_copy(update={"learning_rate": 1e6, "epochs": 20, "max_gradient_norm": 1e9})
        with pytest.raises(LensError, match=r"lower the recipe's learning_rate.*is kept in") as caught:
            train_encoder("wild", "mugs", place.parent, wild, settings)
        kept = Path(str(caught.value).rpartition("is kept in ")[2])
        assert Encoder.load(str(kept)).dims == Encoder.load(place.parent).dims
        client = Registry.connect(mlflow_url).client
        experiment = client.get_experiment_by_name("fine-tuning").experiment_id
        [run] = client.search_runs([experiment], "attributes.run_name = 'wild'")
        assert run.info.status == "FAILED"
        with pytest.raises(LensError, match="no fine-tuning 'wild'"):
            load_finetune(place.lake, "wild")

    def test_without_pairs_is_refused(self, place: Place) -> None:
        with pytest.raises(LensError, match="0 windows of pairs/none: sample them with"):
            train_encoder("x", "none", place.parent, RECIPE, place.settings)


class TestAComparison:
    def test_has_a_row_for_each_encoder_alone_and_projected(self, place: Place) -> None:
        train_encoder("first", "mugs", place.parent, RECIPE, place.settings)
        comparison = compare_encoders("first", ["pixels:4"], place.settings)
        assert comparison == load_comparison(place.lake, "first")
        assert [(row.role, row.variant, row.dims) for row in comparison.rows] == [
            ("fine-tuned", "embedding", 192),
            ("fine-tuned", "projected", 4),
            ("parent", "embedding", 192),
            ("parent", "projected", 4),
            ("compared", "embedding", 48),
            ("compared", "projected", 4),
        ]
        assert {(row.sessions, row.unseen_sessions) for row in comparison.rows} == {(6, 3)}

    def test_judges_as_the_sessions_are(self, place: Place) -> None:
        # Photos of one colour, and the tapped items are those of the same colour: plain pixels rank them perfectly.
        train_encoder("first", "mugs", place.parent, RECIPE, place.settings)
        pixels = compare_encoders("first", ["pixels:4"], place.settings).rows[4]
        assert pixels.metrics["ndcg@5"] == pixels.unseen_metrics["ndcg@5"] == 1

    def test_needs_sessions(self, place: Place) -> None:
        write_sample(place.lake, "mugs", sessions=0)
        train_encoder("first", "mugs", place.parent, RECIPE, place.settings)
        with pytest.raises(LensError, match="pairs/mugs has no sessions"):
            compare_encoders("first", [], place.settings)

    def test_needs_the_pairs_that_were_trained_on(self, place: Place) -> None:
        train_encoder("first", "mugs", place.parent, RECIPE, place.settings)
        write_sample(place.lake, "mugs", fingerprint="fedcba9876543210")
        with pytest.raises(LensError, match="is fedcba9876543210 now, but first was trained on 0123456789abcdef"):
            compare_encoders("first", [], place.settings)

    def test_has_the_parent_as_parent_also_when_it_is_asked_for(self, place: Place) -> None:
        train_encoder("first", "mugs", place.parent, RECIPE, place.settings)
        rows = compare_encoders("first", [place.parent], place.settings).rows
        assert [row.role for row in rows] == ["fine-tuned", "fine-tuned", "parent", "parent"]

    def test_needs_a_training(self, place: Place) -> None:
        with pytest.raises(LensError, match="no fine-tuning 'none'"):
            compare_encoders("none", [], place.settings)


def test_the_program_refuses_a_recipe_in_one_sentence(place: Place) -> None:
    program = [sys.executable, "-m", "listing_lens.finetuning"]
    arguments = ["train", "--name", "x", "--pairs", "mugs", "--parent", place.parent, "--recipe", '{"epoch": 1}']
    ran = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("error: recipe: epoch: Extra inputs are not permitted")
