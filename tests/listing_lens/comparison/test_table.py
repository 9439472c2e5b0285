"""The table: what rows say of sessions that were worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listing_lens.comparison.records import Role
from listing_lens.comparison.table import ComparedSession, Contender, compare
from listing_lens.errors import LensError
from models.metrics import METRICS, expected_at_random, session_metrics
from models.moments import Moments
from models.projection import fit_projection

ITEMS = {name: np.eye(4, dtype=np.float32)[n] for n, name in enumerate("abcd")}
SHOWN = ("a", "b", "c", "d")


def session(name: str, tapped: str, group: str, *, seen: bool = False) -> ComparedSession:
    return ComparedSession(name, SHOWN, tuple(item in tapped for item in SHOWN), (group,), seen)


def contender(role: Role, finds: dict[str, str]) -> Contender:
    """One that puts an item of its own first in each session."""
    return Contender(role, f"{role}-1", role, "embedding", {name: ITEMS[item] for name, item in finds.items()}, ITEMS)


SESSIONS = [
    session("s0", "a", "p"),
    session("s1", "b", "q"),
    session("s2", "cd", "p"),
    session("s3", "d", "r", seen=True),
]
GOOD = contender("fine-tuned", {"s0": "a", "s1": "b", "s2": "d", "s3": "a"})
POOR = contender("parent", {"s0": "b", "s1": "b", "s2": "d", "s3": "d"})


class TestRows:
    def test_are_of_the_unseen_sessions_and_of_the_seen_apart(self) -> None:
        good, *_ = compare([GOOD, POOR], SESSIONS)
        assert (good.unseen.sessions, good.unseen.clusters) == (3, 2)
        assert good.unseen.metrics["precision@1"].mean == 1
        assert good.seen is not None
        assert (good.seen.sessions, good.seen.metrics["precision@1"].mean) == (1, 0)

    def test_gain_over_the_parent_session_by_session(self) -> None:
        good, poor, *_ = compare([GOOD, POOR], SESSIONS)
        first = session_metrics(np.array([False, True, False, False]))["ndcg@5"]
        assert good.gain is not None
        assert good.gain.mean == pytest.approx((1 - first) / 3)
        # Products q, where both are alike, and p.
        assert (good.gain.low, good.gain.high) == pytest.approx((0, (1 - first) / 2))
        assert poor.gain is None

    def test_end_with_random_and_logged_order(self) -> None:
        *_, at_random, logged = compare([POOR], SESSIONS)
        assert (at_random.role, logged.role) == ("random", "logged")
        assert (at_random.label, logged.label) == ("random order", "logged order")
        for name in METRICS:
            expected = [expected_at_random(sum(one.tapped), 4)[name] for one in SESSIONS[:3]]
            assert at_random.unseen.metrics[name].mean == pytest.approx(np.mean(expected))
            shown = [session_metrics(np.array(one.tapped))[name] for one in SESSIONS[:3]]
            assert logged.unseen.metrics[name].mean == pytest.approx(np.mean(shown))

    def test_a_projection_that_keeps_everything_ranks_the_same(self) -> None:
        whole = replace(GOOD, queries={name: vector * np.float32(1) for name, vector in GOOD.queries.items()})
        projected = whole.projected(fit_projection(Moments.of(np.stack([*ITEMS.values(), *ITEMS.values()])), 3))
        alone, fewer, *_ = compare([whole, projected], SESSIONS)
        assert (alone.variant, fewer.variant, fewer.dims) == ("embedding", "projected", 3)
        assert fewer.unseen.metrics["precision@1"] == alone.unseen.metrics["precision@1"]

    @given(st.permutations(SESSIONS))
    def test_do_not_depend_on_the_order_of_sessions(self, sessions: list[ComparedSession]) -> None:
        means = [
            {name: pytest.approx(estimate.mean) for name, estimate in row.unseen.metrics.items()}
            for row in compare([GOOD, POOR], SESSIONS)
        ]
        again = compare([GOOD, POOR], sessions)
        assert [{name: estimate.mean for name, estimate in row.unseen.metrics.items()} for row in again] == means


class TestRefusals:
    def test_no_unseen_session(self) -> None:
        with pytest.raises(LensError, match="no session is unseen"):
            compare([GOOD], SESSIONS[3:])

    def test_one_product(self) -> None:
        with pytest.raises(LensError, match="all 2 unseen sessions are of one product"):
            compare([GOOD], [SESSIONS[0], SESSIONS[2]])
