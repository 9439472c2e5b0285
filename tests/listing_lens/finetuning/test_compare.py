from __future__ import annotations

import pytest
from mugs import RECIPE, Place, write_sample

from listing_lens.comparison import embeddings
from listing_lens.errors import LensError
from listing_lens.finetuning.compare import compare_encoders
from listing_lens.finetuning.records import load_comparison
from listing_lens.finetuning.train import train_encoder


class TestAComparison:
    def test_has_a_row_for_each_encoder_alone_and_projected_and_for_each_order(self, trained: Place) -> None:
        comparison = compare_encoders("first", ["pixels:4"], trained.settings)
        assert comparison == load_comparison(trained.lake, "first")
        assert [(row.role, row.variant, row.dims) for row in comparison.rows] == [
            ("fine-tuned", "embedding", 192),
            ("fine-tuned", "projected", 4),
            ("parent", "embedding", 192),
            ("parent", "projected", 4),
            ("compared", "embedding", 48),
            ("compared", "projected", 4),
            ("random", None, None),
            ("logged", None, None),
        ]

    def test_is_of_the_test_sessions_and_headed_by_those_unseen(self, trained: Place) -> None:
        comparison = compare_encoders("first", ["pixels:4"], trained.settings)
        assert {(row.unseen.sessions, row.unseen.clusters) for row in comparison.rows} == {(4, 3)}
        assert {row.seen.sessions for row in comparison.rows if row.seen} == {2}
        tuned, parent = comparison.row("fine-tuned"), comparison.row("parent")
        assert tuned is not None
        assert parent is not None
        difference = tuned.unseen.metrics["ndcg@5"].mean - parent.unseen.metrics["ndcg@5"].mean
        assert tuned.gain is not None
        assert tuned.gain.mean == pytest.approx(difference)
        assert tuned.gain.low <= tuned.gain.mean <= tuned.gain.high
        assert parent.gain is None
        assert str(tuned.unseen.metrics["ndcg@5"]) in comparison.headline
        assert "on 4 unseen test sessions of 3 products" in comparison.headline

    def test_judges_as_the_sessions_are(self, trained: Place) -> None:
        # Photos of one colour, and the tapped items are those of the same colour: plain pixels rank them perfectly.
        pixels = compare_encoders("first", ["pixels:4"], trained.settings).rows[4]
        assert pixels.unseen.metrics["ndcg@5"].mean == 1
        assert pixels.cost is not None
        assert (pixels.cost.parameters, pixels.cost.gflop) == (0, 0)

    def test_embeds_only_with_what_is_new(self, trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        first = compare_encoders("first", [], trained.settings)
        embedded: list[str] = []
        whole = embeddings._embedded

        def counted(photos: dict[str, bytes], encoder: object, *rest: object) -> object:
            embedded.extend([encoder.encoder_id] * len(photos))  # type: ignore[attr-defined]
            return whole(photos, encoder, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(embeddings, "_embedded", counted)
        second = compare_encoders("first", ["pixels:4"], trained.settings)
        # 6 queries, 8 items, 24 training photos.
        assert embedded == ["pixels-4"] * 38
        assert [row.unseen for row in second.rows[:4]] == [row.unseen for row in first.rows[:4]]

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"tested": ()}, "pairs/mugs has no sessions to compare encoders on"),
            ({"unseen": ()}, "no session is unseen"),
            ({"unseen": (20, 24)}, "all 2 unseen sessions are of one product"),
        ],
    )
    def test_needs_unseen_sessions_of_several_products(
        self, trained: Place, changes: dict[str, tuple[int, ...]], sentence: str
    ) -> None:
        write_sample(trained.lake, "mugs", **changes)  # type: ignore[arg-type]
        with pytest.raises(LensError, match=sentence):
            compare_encoders("first", [], trained.settings)

    def test_needs_the_pairs_that_were_trained_on(self, trained: Place) -> None:
        write_sample(trained.lake, "mugs", fingerprint="fedcba9876543210")
        with pytest.raises(LensError, match="is fedcba9876543210 now, but first was trained on 0123456789abcdef"):
            compare_encoders("first", [], trained.settings)

    def test_has_the_parent_as_parent_also_when_it_is_asked_for(self, trained: Place) -> None:
        rows = compare_encoders("first", [trained.parent], trained.settings).rows
        assert [row.role for row in rows] == ["fine-tuned", "fine-tuned", "parent", "parent", "random", "logged"]

    def test_of_a_training_that_found_nothing_better_has_the_parent_alone(self, place: Place) -> None:
        idle = RECIPE.model_copy(update={"learning_rate": 1e-12, "scalar_learning_rate": 1e-12})
        train_encoder("idle", "mugs", place.parent, idle, place.settings)
        comparison = compare_encoders("idle", [], place.settings)
        assert [row.role for row in comparison.rows] == ["parent", "parent", "random", "logged"]
        assert "this is the parent, as training found none that is better" in comparison.headline

    def test_needs_a_training(self, place: Place) -> None:
        with pytest.raises(LensError, match="no fine-tuning 'none'"):
            compare_encoders("none", [], place.settings)
