"""Validation: recalls and metrics as computed by hand, and pictures of what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_training import made_pairs, made_validation, measured, photo

from models.encoders.encoder import Encoder
from models.finetune.shards import Device, decode
from models.finetune.towers import Towers
from models.finetune.validation import (
    HeldOutSession,
    Validation,
    ValidationShare,
    interleaved,
    mean_metrics,
    rank_sessions,
    retrievals,
    title_recall,
)
from models.metrics import relevance_by_rank, session_metrics


def rows(*angles: float) -> NDArray[np.float32]:
    """Unit vectors in a plane, by their angles in degrees."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


class TestTitleRecall:
    def test_by_hand(self) -> None:
        # The first photo's title is the nearest, the second's the second, the third's the last.
        images, titles = rows(0, 40, 10), rows(1, 90, 170)
        recall = title_recall(images, titles, ["a", "b", "c"], cutoffs=(1, 2, 3))
        assert recall == {"titles/recall@1": 1 / 3, "titles/recall@2": 2 / 3, "titles/recall@3": 1.0}

    def test_a_title_that_reads_the_same_will_do(self) -> None:
        images, titles = rows(0, 90), rows(90, 1)
        assert title_recall(images, titles, ["a", "b"], (1,)) == {"titles/recall@1": 0.0}
        assert title_recall(images, titles, ["Red bag", "red BAG!"], (1,)) == {"titles/recall@1": 1.0}

    def test_titles_that_read_the_same_are_one_place(self) -> None:
        # Three nearer titles, of which two read the same: the own one is third.
        images, titles = rows(0, 0, 0, 0), rows(1, 2, 3, 4)
        recall = title_recall(images, titles, ["a", "A", "b", "c"], cutoffs=(1, 2, 3))
        assert recall == {"titles/recall@1": 0.5, "titles/recall@2": 0.75, "titles/recall@3": 1.0}

    @pytest.mark.parametrize("value", [1.0, np.nan])
    def test_an_encoder_that_tells_nothing_apart_finds_nothing(self, value: float) -> None:
        images = np.full((20, 4), value, np.float32)
        recall = title_recall(images, images, [str(number) for number in range(20)])
        assert set(recall.values()) == {0.0}

    @given(seed=st.integers(0, 99), count=st.sampled_from([1, 7, 128, 200]))
    def test_as_a_plain_loop_counts(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        images, titles = rng.standard_normal((2, count, 3)).astype(np.float32)
        texts = [str(rng.integers(count)) for _ in range(count)]
        found = []
        for image, text in zip(images, texts, strict=True):
            order = np.argsort(-(titles @ image))
            distinct = list(dict.fromkeys(texts[place] for place in order))
            found.append(distinct.index(text))
        expected = {f"titles/recall@{k}": np.mean([rank < k for rank in found]) for k in (1, 5, 10)}
        assert title_recall(images, titles, texts) == pytest.approx(expected)


class TestSessions:
    session = HeldOutSession("s", b"", ("d", "c", "b", "a"), (True, False, True, False), unseen=True)

    def test_are_ranked_by_likeness_and_measured_as_the_evaluation_does(self) -> None:
        # Photo at 20°: b, a, c, d, of which b and d were tapped.
        results = rank_sessions([self.session], rows(20), dict(zip("abcd", rows(0, 30, 60, 90), strict=True)))
        assert results == {"s": session_metrics(np.array([True, False, False, True]))}
        assert results["s"]["ndcg@3"] == pytest.approx(1 / (1 + 1 / np.log2(3)))

    def test_equal_scores_are_ordered_as_the_evaluation_orders_them(self) -> None:
        items = dict.fromkeys("abcd", rows(0)[0])
        expected = session_metrics(relevance_by_rank(np.zeros(4, np.float32), self.session.tapped, self.session.shown))
        assert rank_sessions([self.session], rows(0), items)["s"] == expected

    def test_means(self) -> None:
        metrics = [session_metrics(np.array(ranked)) for ranked in ([True, False], [False, True])]
        assert mean_metrics(metrics)["precision@1"] == 0.5
        assert mean_metrics([]) == {}


@pytest.mark.parametrize("of", [2, 3, 100])
def test_devices_embed_a_share_each(siglip: Path, validation: Validation, of: int) -> None:
    towers = Towers.load(siglip).eval()
    shares = [ValidationShare(validation, towers, Device(number, of)).embed(towers) for number in range(of)]
    alone = ValidationShare(validation, towers, Device(0, 1)).embed(towers)
    for parts, whole in zip(zip(*shares, strict=True), alone, strict=True):
        np.testing.assert_allclose(interleaved(parts), whole, atol=1e-6)


def test_photos_are_prepared_as_when_a_catalog_is_embedded(siglip: Path, validation: Validation) -> None:
    photos, _ = ValidationShare(validation, Towers.load(siglip).eval(), Device(0, 1)).embed(Towers.load(siglip).eval())
    wanted = Encoder.load(str(siglip)).embed([decode(data) for data in validation.photos])
    np.testing.assert_allclose(photos, wanted, atol=1e-6)


class TestMeasure:
    @pytest.fixture(scope="class")
    def towers(self, siglip: Path) -> Towers:
        return Towers.load(siglip).eval()

    def test_titles_sessions_and_those_unseen(self, towers: Towers, validation: Validation) -> None:
        metrics, figure = measured(validation, towers)
        assert {name.split("/")[0] for name in metrics} == {"titles", "sessions", "unseen"}
        queries = towers.embed_images([decode(s.image) for s in validation.sessions])
        names = list(validation.items)
        items = dict(zip(names, towers.embed_images([decode(validation.items[n]) for n in names]), strict=True))
        results = rank_sessions(validation.sessions, queries, items)
        # Every other session is unseen.
        assert metrics["unseen/ndcg@5"] == pytest.approx((results["s0"]["ndcg@5"] + results["s2"]["ndcg@5"]) / 2)
        assert metrics["sessions/ndcg@5"] == pytest.approx(np.mean([r["ndcg@5"] for r in results.values()]))
        assert figure is not None
        assert validation.default_metric == "sessions/ndcg@5"

    def test_without_sessions(self, towers: Towers) -> None:
        validation = made_validation(made_pairs(8), sessions=0)
        metrics, figure = measured(validation, towers)
        assert metrics.keys() == {"titles/recall@1", "titles/recall@5", "titles/recall@10"}
        assert figure is None
        assert validation.default_metric == "titles/recall@10"

    def test_without_unseen_sessions(self, towers: Towers) -> None:
        pairs = made_pairs(8)
        seen = [HeldOutSession("s", photo(9), ("i0000", "i0001"), (True, False), unseen=False)]
        metrics, _ = measured(Validation(pairs, seen, {pair.item_id: pair.image for pair in pairs}), towers)
        assert not [name for name in metrics if name.startswith("unseen/")]


class TestRetrievals:
    def test_a_row_a_session_and_the_tapped_framed(self) -> None:
        items = dict(zip("abcd", rows(0, 30, 60, 90), strict=True))
        photos = {name: photo(seed) for seed, name in enumerate("abcd")}
        sessions = [
            HeldOutSession(name, photo(9), ("a", "b", "c", "d"), (False, True, False, False), True) for name in "xy"
        ]
        figure = retrievals(sessions, rows(0, 90), items, photos)
        axes = np.array(figure.axes).reshape(2, 8)
        # The photo, four items, and three places that four items do not fill.
        shown = [[bool(axis.images) for axis in row] for row in axes]
        assert shown == [[True] * 5 + [False] * 3] * 2
        framed = [[axis.spines["left"].get_visible() for axis in row[1:5]] for row in axes]
        # From 0°: a, b, c, d; from 90°: d, c, b, a.
        assert framed == [[False, True, False, False], [False, False, True, False]]
