"""Evaluation: the metrics are those of the ranking by similarity, and every session is judged or left out with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tiny import FIRST, SECOND, Indexed, bounds, image_root, land, land_sessions, listing, take_photo

from beam_jobs import compact_lake, embed_listings, fit_projection
from beam_jobs.evaluate_sessions import VARIANTS, main
from beam_jobs.launcher import refusal
from listing_lens.embedding.embedder import Embedder, TextEmbedder
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.evaluations import kinds_evaluated
from listing_lens.lake.fits import load_fit
from listing_lens.lake.records import Query, Session, Status
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake, Manifest, evaluations
from models.embedder import EmbedderCard
from models.images import ImageLimits, decode_image
from models.metrics import METRICS, relevance_by_rank, session_metrics

_SHOWN = tuple(f"m{n:03d}" for n in (4, 5, 6, 7, 8, 9, 10, 11))


def _session(name: str, query: str, tapped: set[str], shown: tuple[str, ...] = _SHOWN) -> Session:
    taps = tuple(item in tapped for item in shown)
    return Session(name, FIRST.start + timedelta(hours=2), Query((query,)), shown, taps)


def _evaluate(indexed: Indexed, window: Window = FIRST, *, afresh: bool = False) -> None:
    card = indexed.index.card.model_dump_json()
    main([*bounds(window), "--card", card, *(["--afresh"] if afresh else [])])


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
        query = embedding(session.query.image_uris[0])
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
    main([*bounds(FIRST), "--card", card.model_dump_json()])
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
            Session("malformed", FIRST.start, Query(("m007.jpg",)), ("m007", "m008"), (True,)),
            _session("shown twice", "m007.jpg", {"m007"}, ("m007", "m007")),
            _session("shown but set aside", "m007.jpg", {"m007"}, ("m007", "m002")),
        ],
    )
    _evaluate(indexed)
    counts = lake.manifest(evaluations(indexed.index.card.space), FIRST).counts
    assert +Counter(counts) == {
        "read": 6,
        "evaluated": 1,
        "malformed": 2,
        "nothing_tapped": 1,
        "query_unreadable": 1,
        "item_not_embedded": 1,
    }


def test_an_item_that_is_sold_by_now_was_shown_as_it_was(indexed: Indexed) -> None:
    """m001 is sold in the second window: what has no embedding any more leaves its sessions out, by reason."""
    sessions = [_session("sold", "m001.jpg", {"m001"}, ("m000", "m001")), _session("good", "m007.jpg", {"m007"})]
    land_sessions(indexed.lake, FIRST, sessions)
    _evaluate(indexed)
    counts = indexed.lake.manifest(evaluations(indexed.index.card.space), FIRST).counts
    assert (counts["evaluated"], counts["item_not_embedded"]) == (1, 1)


class TestAReplay:
    """An evaluation that is repeated gives what it gave: by the table as it was, also after everything was sold."""

    @pytest.fixture
    def evaluated(self, indexed: Indexed) -> Indexed:
        """One session was evaluated; since then, an item that it shows is sold."""
        land_sessions(indexed.lake, FIRST, [_session("s", "m007.jpg", {"m007"}), _session("t", "m009.jpg", {"m004"})])
        _evaluate(indexed)
        third = Window(SECOND.end, SECOND.end + timedelta(days=1))
        land(indexed.lake, third, [listing("m005", third, status=Status.SOLD)])
        embed_listings.main(bounds(third))
        return indexed

    def _manifest(self, indexed: Indexed) -> Manifest:
        return indexed.lake.manifest(evaluations(indexed.index.card.space), FIRST)

    def test_is_by_the_version_of_the_first(self, evaluated: Indexed) -> None:
        before = self._manifest(evaluated)
        assert before.counts["evaluated"] == 2
        for _ in range(2):
            _evaluate(evaluated)
            after = self._manifest(evaluated)
            assert after.files != before.files
            assert after.counts == before.counts
            assert after.parameters == before.parameters

    def test_afresh_is_by_the_newest_and_stays_so(self, evaluated: Indexed) -> None:
        embeddings = Embeddings(evaluated.lake, evaluated.index.card.encoder_id)
        take_photo(evaluated.lake, "q.jpg", 3)
        land_sessions(
            evaluated.lake,
            FIRST,
            [_session("s", "m007.jpg", {"m007"}), _session("u", "q.jpg", {"m006"}, ("m006", "m007"))],
        )
        _evaluate(evaluated, afresh=True)
        after = self._manifest(evaluated)
        assert after.parameters["versions"][1] == embeddings.require()
        # The one shows what is sold by now: it is judged by what it was.
        assert (after.counts["evaluated"], after.counts["item_not_embedded"]) == (2, 0)
        _evaluate(evaluated)
        assert self._manifest(evaluated).parameters == after.parameters

    def test_by_another_projection_is_by_the_same_embeddings(self, evaluated: Indexed) -> None:
        fit_projection.main(["--name", "other", "--dims", "4"])
        card = load_fit(evaluated.lake, "other").card
        main([*bounds(FIRST), "--card", card.model_dump_json()])
        other = evaluated.lake.manifest(evaluations(card.space), FIRST)
        assert other.parameters["versions"] == self._manifest(evaluated).parameters["versions"]
        assert other.counts == self._manifest(evaluated).counts

    def test_by_a_version_that_is_no_longer_kept_says_so(
        self, evaluated: Indexed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = self._manifest(evaluated)
        monkeypatch.setenv("LENS_LAKE_RETENTION_DAYS", "1e-9")
        compact_lake.main([])
        first, last = before.parameters["versions"]
        gone = rf"by versions {first} to {last} of .*no longer kept \(LENS_LAKE_R.*give --afresh"
        with pytest.raises(LensError, match=gone):
            _evaluate(evaluated)
        assert self._manifest(evaluated) == before
        take_photo(evaluated.lake, "q.jpg", 3)
        land_sessions(evaluated.lake, FIRST, [_session("u", "q.jpg", {"m006"}, ("m006", "m007"))])
        _evaluate(evaluated, afresh=True)
        assert self._manifest(evaluated).counts["evaluated"] == 1


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


class TestKindsOfQueries:
    """Each is ranked by its own vector, and has means of its own."""

    def test_words_photos_and_both(self, indexed: Indexed) -> None:
        lake, card = indexed.lake, indexed.index.card
        queries = {
            "one": Query(("m007.jpg",)),
            "photos": Query(("m007.jpg", "m009.jpg")),
            "text": Query((), "a red bag"),
            "both": Query(("m007.jpg",), "a red bag"),
            "mostly text": Query(("m007.jpg",), "a red bag", 0.9),
        }
        sessions = [replace(_session(name, "", {"m007", "m010"}), query=query) for name, query in queries.items()]
        land_sessions(lake, FIRST, sessions)
        _evaluate(indexed)

        embedder, texts = Embedder.load(card, lake), TextEmbedder.load(card, lake)
        limits = ImageLimits(10**7, 10**7)

        def vectors(names: Sequence[str]) -> np.ndarray:
            data = [Path(image_root(lake), name).read_bytes() for name in names]
            return embedder.embed([decode_image(one, limits, min_side=64) for one in data])

        def unit(vector: np.ndarray) -> np.ndarray:
            return vector / np.linalg.norm(vector)

        seven, nine = vectors(["m007.jpg", "m009.jpg"])
        words = texts.embed(["a red bag"])[0]
        wanted = {
            "one": seven,
            "photos": seven + nine,
            "text": words,
            "both": 0.3 * seven + 0.7 * words,
            "mostly text": 0.1 * seven + 0.9 * words,
        }
        shown = vectors([f"{item}.jpg" for item in _SHOWN])
        expected = {
            name: session_metrics(relevance_by_rank(shown @ unit(vector), session.tapped, _SHOWN))
            for (name, vector), session in zip(wanted.items(), sessions, strict=True)
        }
        rows = {
            row["session_id"]: row
            for batch in lake.read(evaluations(card.space), [FIRST])
            for row in batch.to_pylist()
            if row["variant"] == "projected"
        }
        for name, metrics in expected.items():
            assert {metric: rows[name][metric] for metric in METRICS} == pytest.approx(metrics)
        assert {name: row["query"] for name, row in rows.items()} == {
            "one": "photo",
            "photos": "photos",
            "text": "text",
            "both": "photo_and_text",
            "mostly text": "photo_and_text",
        }
        manifest = lake.manifest(evaluations(card.space), FIRST)
        assert kinds_evaluated(manifest.counts) == {"photo": 1, "photos": 1, "text": 1, "photo_and_text": 2}
        means = manifest.parameters["metrics"]
        assert means["projected/ndcg@5"] == pytest.approx(expected["one"]["ndcg@5"])
        assert means["text/projected/ndcg@5"] == pytest.approx(expected["text"]["ndcg@5"])
        mean = (expected["both"]["ndcg@5"] + expected["mostly text"]["ndcg@5"]) / 2
        assert means["photo_and_text/projected/ndcg@5"] == pytest.approx(mean)

    def test_one_unreadable_photo_of_several_leaves_the_session_out(self, indexed: Indexed) -> None:
        query = Query(("m007.jpg", "gone.jpg"))
        sessions = [replace(_session("s", "", {"m007"}), query=query), _session("other", "m007.jpg", {"m007"})]
        land_sessions(indexed.lake, FIRST, sessions)
        _evaluate(indexed)
        counts = indexed.lake.manifest(evaluations(indexed.index.card.space), FIRST).counts
        assert (counts["query_unreadable"], counts["evaluated"]) == (1, 1)

    def test_words_are_left_out_for_an_encoder_of_images_alone(
        self, indexed: Indexed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LENS_ENCODER", "pixels:4")
        embed_listings.main(bounds(FIRST))
        fit_projection.main(["--name", "pixels", "--dims", "4"])
        card = load_fit(indexed.lake, "pixels").card
        text = replace(_session("text", "", {"m007"}), query=Query((), "a red bag"))
        land_sessions(indexed.lake, FIRST, [text, _session("photo", "m007.jpg", {"m007"})])
        main([*bounds(FIRST), "--card", card.model_dump_json()])
        counts = indexed.lake.manifest(evaluations(card.space), FIRST).counts
        assert (counts["no_text_tower"], counts["evaluated"]) == (1, 1)
