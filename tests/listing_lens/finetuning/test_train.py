from __future__ import annotations

from pathlib import Path

import pytest
from mugs import RECIPE, Place, write_sample

from listing_lens.errors import LensError
from listing_lens.finetuning.records import load_finetune
from listing_lens.finetuning.train import train_encoder
from listing_lens.lake.windows import Lake
from models.encoders.encoder import Encoder
from models.registry import Registry


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
        assert record.best_step in (3, 6)
        assert record.metrics.keys() >= {"titles/recall@10", "sessions/ndcg@5", "unseen/ndcg@5"}
        names = {path.name for path in Path(record.encoder_source).iterdir()}
        assert names >= {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"}
        assert not [name for name in names if name.endswith((".bin", ".pkl", ".pt"))]

    def test_that_is_never_better_than_its_parent_leaves_the_parent(self, place: Place) -> None:
        recipe = RECIPE.model_copy(update={"learning_rate": 1e-12, "scalar_learning_rate": 1e-12})
        record = train_encoder("idle", "mugs", place.parent, recipe, place.settings)
        assert record is not None
        assert (record.best_step, record.steps) == (0, 6)
        assert (record.encoder_id, record.encoder_source) == (record.parent_id, record.parent_source)
        assert not Path(place.lake.root, "encoders").exists()

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
        logged = {"loss", "learning_rate", "temperature", "bias", "gradient_norm", "memory_gb"}
        logged |= {"images_per_s", "data_wait_share"}
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
