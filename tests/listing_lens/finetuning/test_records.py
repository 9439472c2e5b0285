"""Records of fine-tuning: they come back, or a sentence says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from listing_lens.comparison.records import Comparison, ComparisonRow, Estimate, Scores
from listing_lens.errors import LensError
from listing_lens.finetuning.records import (
    Finetune,
    comparison_path,
    finetune_path,
    load_comparison,
    load_finetune,
    save_comparison,
    save_finetune,
)
from listing_lens.lake.windows import Lake

FINETUNE = Finetune(
    name="june",
    pairs="june",
    window="20260601T000000Z_20260701T000000Z",
    pairs_fingerprint="0123456789abcdef",
    parent_source="google/siglip@1",
    parent_id="siglip-00000000",
    parent_revision="1",
    recipe={"epochs": 5},
    encoder_source="gs://lake/encoders/siglip-11111111",
    encoder_id="siglip-11111111",
    mlflow_run_id=None,
    steps=19_500,
    best_step=19_000,
    stopped="all epochs were trained",
    metrics={"ndcg@5": 0.5},
)
COMPARISON = Comparison(
    name="june",
    rows=tuple(
        ComparisonRow(
            encoder_id="siglip-11111111",
            encoder_source="gs://lake/encoders/siglip-11111111",
            role="fine-tuned",
            variant=variant,
            dims=dims,
            unseen=Scores(sessions=20, clusters=9, metrics={"ndcg@5": Estimate(mean=0.5, low=0.4, high=0.6)}),
        )
        for variant, dims in (("embedding", 768), ("projected", 128))
    ),
)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


class TestRecords:
    def test_come_back_by_their_name(self, lake: Lake) -> None:
        save_finetune(lake, FINETUNE)
        save_comparison(lake, COMPARISON)
        assert load_finetune(lake, "june") == FINETUNE
        assert load_comparison(lake, "june") == COMPARISON

    def test_a_later_one_of_the_name_replaces_it(self, lake: Lake) -> None:
        save_finetune(lake, FINETUNE)
        later = FINETUNE.model_copy(update={"steps": 3})
        save_finetune(lake, later)
        assert load_finetune(lake, "june") == later

    def test_a_training_that_did_not_finish_is_named(self, lake: Lake) -> None:
        with pytest.raises(LensError, match="no fine-tuning 'july' in the lake .*: run the DAG finetune_encoder"):
            load_finetune(lake, "july")

    def test_an_encoder_that_was_not_compared_is_named(self, lake: Lake) -> None:
        save_finetune(lake, FINETUNE)
        with pytest.raises(LensError, match="'june' was not compared yet: run `python .* compare --name june`"):
            load_comparison(lake, "june")

    def test_one_of_another_version_says_where_it_differs(self, lake: Lake) -> None:
        lake.write_bytes(finetune_path(lake, "june"), b'{"name": "june"}')
        lake.write_bytes(comparison_path(lake, "june"), b'{"name": "june", "rows": [], "winner": 1}')
        with pytest.raises(LensError, match=r"june\.json is not a record of this version: pairs: Field required"):
            load_finetune(lake, "june")
        with pytest.raises(LensError, match=r"comparison\.json is not a record of this version: winner: Extra"):
            load_comparison(lake, "june")


@pytest.mark.parametrize("name", ["../elsewhere", "", "a/b", "autumn-comparison"])
def test_a_name_that_would_be_another_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LensError, match="cannot be named"):
        finetune_path(Lake(str(tmp_path)), name)
