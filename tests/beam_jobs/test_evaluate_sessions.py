"""Evaluation: the metrics are those of the ranking by similarity, and every session is judged or left out with a reason."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tiny import FIRST, SECOND, Indexed, image_root, land_sessions, take_photo

from beam_jobs import fit_projection
from beam_jobs.evaluate_sessions import VARIANTS, main
from beam_jobs.launcher import refusal
from listing_lens.embedding.embedder import Embedder
from listing_lens.errors import LensError
from listing_lens.lake.fits import load_fit
from listing_lens.lake.records import Session
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake, evaluations
from models.embedder import EmbedderCard
from models.images import ImageLimits, decode_image
from models.metrics import METRICS, relevance_by_rank, session_metrics

_SHOWN = tuple(f"m{n:03d}" for n in (4, 5, 6, 7, 8, 9, 10, 11))


def _session(name: str, query: str, tapped: set[str], shown: tuple[str, ...] = _SHOWN) -> Session:
    taps = tuple(item in tapped for item in shown)
    return Session(name, FIRST.start + timedelta(hours=2), query, shown, taps)


def _evaluate(indexed: Indexed, window: Window = FIRST) -> None:
    bounds = ["--window_start", window.start.isoformat(), "--window_end", window.end.isoformat()]
    main([*bounds, "--card", indexed.index.card.model_dump_json()])


def test_metrics_are_those_of_the_ranking_by_similarity(indexed: Indexed) -> None:
    lake, card = indexed.lake, indexed.index.card
    sessions = [_session("s1", "m007.jpg", {"m007"}), _session("s2", "m009.jpg", {"m004", "m011"})]
    land_sessions(lake, FIRST, sessions)
    _evaluate(indexed)

    embedder = Embedder.load(card, lake)
    limits = ImageLimits(10**7, 10**7)

    def embedding(name: str) -> np.ndarray:
        image = decode_image(Path(image_root(lake), name).read_bytes(), limits, min_side=64)
        return embedder.encoder.embed([image])

    rows = {
        (row["session_id"], row["variant"]): row
        for batch in lake.read(evaluations(card.space), [FIRST])
        for row in batch.to_pylist()
    }
    assert set(rows) == {(s.session_id, variant) for s in sessions for variant in VARIANTS}
    for session in sessions:
        query = embedding(session.query_image_uri)
        shown = np.vstack([embedding(f"{item}.jpg") for item in session.shown])
        pairs = {
            "embedding": (query, shown),
            "projected": (embedder.projection.apply(query), embedder.projection.apply(shown)),
        }
        for variant, (q, items) in pairs.items():
            expected = session_metrics(relevance_by_rank(items @ q[0], session.tapped, session.shown))
            row = rows[session.session_id, variant]
            assert {name: row[name] for name in METRICS} == pytest.approx(expected)

    manifest = lake.manifest(evaluations(card.space), FIRST)
    for variant in VARIANTS:
        mean = np.mean([rows[s.session_id, variant]["ndcg@5"] for s in sessions])
        assert manifest.parameters["metrics"][f"{variant}/ndcg@5"] == pytest.approx(mean)
    # A photo of the very item ranks it first.
    assert rows["s1", "embedding"]["precision@1"] == 1


def test_means_are_also_of_the_first_dimensions(indexed: Indexed) -> None:
    lake = indexed.lake
    fit_projection.main(["--name", "wide", "--dims", "20"])
    card = load_fit(lake, "wide").card
    sessions = [_session("s1", "m007.jpg", {"m007"}), _session("s2", "m009.jpg", {"m004", "m011"})]
    land_sessions(lake, FIRST, sessions)
    means = _means(lake, card)
    assert {name.split("/")[0] for name in means} == {*VARIANTS, "projected_8", "projected_16"}
    # The first dimensions of a fit are the fit to so many.
    assert indexed.index.card.dims == 8
    narrow = _means(lake, indexed.index.card)
    for name in METRICS:
        assert means[f"projected_8/{name}"] == pytest.approx(narrow[f"projected/{name}"])
    rows = [row for batch in lake.read(evaluations(card.space), [FIRST]) for row in batch.to_pylist()]
    assert sorted(row["variant"] for row in rows) == ["embedding", "embedding", "projected", "projected"]


def _means(lake: Lake, card: EmbedderCard) -> dict[str, float]:
    bounds = ["--window_start", FIRST.start.isoformat(), "--window_end", FIRST.end.isoformat()]
    main([*bounds, "--card", card.model_dump_json()])
    return lake.manifest(evaluations(card.space), FIRST).parameters["metrics"]


def test_sessions_are_left_out_by_reason_and_counted(indexed: Indexed) -> None:
    lake = indexed.lake
    lake.write_bytes(f"{image_root(lake)}/broken.jpg", b"no image")
    land_sessions(
        lake,
        FIRST,
        [
            _session("good", "m007.jpg", {"m007"}),
            _session("no tap", "m007.jpg", set()),
            _session("unreadable", "broken.jpg", {"m007"}),
            Session("malformed", FIRST.start, "m007.jpg", ("m007", "m008"), (True,)),
            _session("shown twice", "m007.jpg", {"m007"}, ("m007", "m007")),
            _session("shown but set aside", "m007.jpg", {"m007"}, ("m007", "m002")),
        ],
    )
    _evaluate(indexed)
    counts = lake.manifest(evaluations(indexed.index.card.space), FIRST).counts
    assert counts == {
        "read": 6,
        "evaluated": 1,
        "malformed": 2,
        "nothing_tapped": 1,
        "query_unreadable": 1,
        "item_not_embedded": 1,
    }


def test_an_item_counts_as_it_looked_last(indexed: Indexed) -> None:
    # m001 is sold in the second window: it was embedded in the first, and sessions that showed it can be judged.
    land_sessions(indexed.lake, FIRST, [_session("s", "m001.jpg", {"m001"}, ("m000", "m001"))])
    _evaluate(indexed)
    assert indexed.lake.manifest(evaluations(indexed.index.card.space), FIRST).counts["evaluated"] == 1


def test_a_window_that_nothing_can_be_judged_by_fails_and_leaves_nothing(indexed: Indexed) -> None:
    take_photo(indexed.lake, "q.jpg", 3)
    land_sessions(indexed.lake, FIRST, [_session("no tap", "q.jpg", set())])
    with pytest.raises(Exception, match="no session of") as failure:
        _evaluate(indexed)
    assert "'nothing_tapped': 1" in (refusal(failure.value) or "")
    assert indexed.lake.windows(evaluations(indexed.index.card.space)) == []


def test_sessions_that_have_not_landed_are_no_empty_window(indexed: Indexed) -> None:
    with pytest.raises(LensError, match="sessions of .* have not landed"):
        _evaluate(indexed, SECOND)


def test_a_card_that_is_none_is_refused(indexed: Indexed) -> None:
    with pytest.raises(LensError, match="--card is no embedder's card"):
        main(["--window_start", str(FIRST.start), "--window_end", str(FIRST.end), "--card", "{}"])
