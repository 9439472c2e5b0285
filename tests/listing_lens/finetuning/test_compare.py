from __future__ import annotations

import pytest
from mugs import Place, write_sample

from listing_lens.errors import LensError
from listing_lens.finetuning.compare import compare_encoders
from listing_lens.finetuning.records import load_comparison


class TestAComparison:
    def test_has_a_row_for_each_encoder_alone_and_projected(self, trained: Place) -> None:
        comparison = compare_encoders("first", ["pixels:4"], trained.settings)
        assert comparison == load_comparison(trained.lake, "first")
        assert [(row.role, row.variant, row.dims) for row in comparison.rows] == [
            ("fine-tuned", "embedding", 192),
            ("fine-tuned", "projected", 4),
            ("parent", "embedding", 192),
            ("parent", "projected", 4),
            ("compared", "embedding", 48),
            ("compared", "projected", 4),
        ]
        assert {(row.sessions, row.unseen_sessions) for row in comparison.rows} == {(6, 3)}

    def test_judges_as_the_sessions_are(self, trained: Place) -> None:
        # Photos of one colour, and the tapped items are those of the same colour: plain pixels rank them perfectly.
        pixels = compare_encoders("first", ["pixels:4"], trained.settings).rows[4]
        assert pixels.metrics["ndcg@5"] == pixels.unseen_metrics["ndcg@5"] == 1

    def test_needs_sessions(self, trained: Place) -> None:
        write_sample(trained.lake, "mugs", sessions=0)
        with pytest.raises(LensError, match="pairs/mugs has no sessions"):
            compare_encoders("first", [], trained.settings)

    def test_needs_the_pairs_that_were_trained_on(self, trained: Place) -> None:
        write_sample(trained.lake, "mugs", fingerprint="fedcba9876543210")
        with pytest.raises(LensError, match="is fedcba9876543210 now, but first was trained on 0123456789abcdef"):
            compare_encoders("first", [], trained.settings)

    def test_has_the_parent_as_parent_also_when_it_is_asked_for(self, trained: Place) -> None:
        rows = compare_encoders("first", [trained.parent], trained.settings).rows
        assert [row.role for row in rows] == ["fine-tuned", "fine-tuned", "parent", "parent"]

    def test_needs_a_training(self, place: Place) -> None:
        with pytest.raises(LensError, match="no fine-tuning 'none'"):
            compare_encoders("none", [], place.settings)
