"""Sampling pairs: every rule that leaves a listing out, a draw that repeats and nests, and no twin across the split."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import FIRST, SECOND, image_root, land, land_marketplace, land_sessions, land_unchecked, listing, scene

from beam_jobs import sample_pairs
from beam_jobs.launcher import refusal
from beam_jobs.pairs import shards
from beam_jobs.pairs.counts import LEFT_OUT, SESSION_LEFT_OUT, SESSION_UNUSABLE, TWINS
from beam_jobs.sample_pairs import main
from listing_lens.errors import LensError
from listing_lens.lake.pairs import (
    PAIR_SCHEMA,
    PAIR_SESSION_SCHEMA,
    SESSION_ITEM_SCHEMA,
    SESSION_ITEMS,
    TEST_SESSIONS,
    TRAIN,
    VALIDATION,
    VALIDATION_SESSIONS,
    fingerprint,
    pair_content,
    pairs,
    pairs_info,
)
from listing_lens.lake.records import Listing, Query, Session, Status
from listing_lens.lake.searches import FROM_LOG
from listing_lens.lake.window import Window
from listing_lens.lake.windows import DEAD_LETTERS, Lake, Manifest
from models.pairs.split import Split, split_of
from models.sampling import sample_number

BOTH = Window(FIRST.start, SECOND.end)
# As good as nothing.
NONE = "1e-9"


def sample(lake: Lake, *options: str, window: Window = FIRST, name: str = "p", share: float = 0.5) -> Manifest:
    """Run the job, without sessions or anything to test on unless the options say how much, and return its manifest."""
    bounds = ["--window_start", window.start.isoformat(), "--window_end", window.end.isoformat()]
    defaults = ["--sessions", "0", "--image_side", "64", "--validation_share", str(share)]
    defaults += ["--test_share", NONE, "--test_time", NONE]
    main(["--name", name, *bounds, *defaults, *options])
    return lake.manifest(pairs(name), window)


def failure(lake: Lake, *options: str, **where: Any) -> str:
    """The sentence of a run that fails, and leaves nothing."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the runner wraps it in
        sample(lake, *options, **where)
    assert lake.windows(pairs("p")) == []
    return refusal(caught.value) or ""


def rows(lake: Lake, kind: str, window: Window = FIRST, name: str = "p") -> list[dict[str, Any]]:
    return [row for batch in lake.read(pairs(name), [window], kind=kind) for row in batch.to_pylist()]


def items(lake: Lake, *kinds: str, window: Window = FIRST, name: str = "p") -> list[str]:
    return sorted(row["item_id"] for kind in kinds or (TRAIN, VALIDATION) for row in rows(lake, kind, window, name))


def put(lake: Lake, listings: Sequence[Listing], window: Window = FIRST, **scenes: int) -> None:
    """Land listings; each item's photo is a scene of its own unless it is given whose."""
    for made in listings:
        seed = scenes.get(made.item_id, sample_number("scene", made.item_id))
        lake.write_bytes(f"{image_root(lake)}/{made.image_uri}", scene(seed))
    land(lake, window, listings)


def some(count: int, **changes: object) -> list[Listing]:
    return [listing(f"m{n:03d}", minute=n % 60, **changes) for n in range(count)]


def assert_adds_up(counts: dict[str, int]) -> None:
    read = ("superseded", "test_products", "not_drawn", "dead_lettered", TRAIN, VALIDATION, *LEFT_OUT, *TWINS)
    assert counts["read"] == sum(counts[name] for name in read)
    kept = (VALIDATION_SESSIONS, TEST_SESSIONS)
    left_out = [f"sessions_{reason}" for reason in (*SESSION_UNUSABLE, *SESSION_LEFT_OUT)]
    assert counts["sessions_read"] == sum(counts[name] for name in (*kept, "sessions_not_drawn", *left_out))


def test_pairs_are_what_was_listed_with_the_photo_scaled_down(lake: Lake) -> None:
    put(lake, [*some(12), listing("coat", title="A coat", category=("Fashion", "Coats"), product_id="p1")])
    manifest = sample(lake)
    assert items(lake) == sorted([*(f"m{n:03d}" for n in range(12)), "coat"])
    [coat] = [row for kind in (TRAIN, VALIDATION) for row in rows(lake, kind) if row["item_id"] == "coat"]
    assert coat | {"image": b""} == {
        "item_id": "coat",
        "title": "A coat",
        "category": ["Fashion", "Coats"],
        "product_id": "p1",
        "image": b"",
    }
    with Image.open(io.BytesIO(coat["image"])) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
    for kind, schema in ((TRAIN, PAIR_SCHEMA), (VALIDATION, PAIR_SCHEMA)):
        for name in manifest.files[kind]:
            assert pq.read_schema(Path(lake.folder(pairs("p"), FIRST), name)).equals(schema)


def test_a_manifest_says_how_a_sample_came_to_be(lake: Lake) -> None:
    put(lake, some(12))
    manifest = sample(lake, "--salt", "s")
    contents = [
        pair_content(kind, row["item_id"], row["title"], row["image"])
        for kind in (TRAIN, VALIDATION)
        for row in rows(lake, kind)
    ]
    assert manifest.parameters == {
        "pairs": 1_000_000,
        "sessions": 0,
        "validation_share": 0.5,
        "test_share": 1e-9,
        "test_time": 1e-9,
        "split_by": "product",
        "balance": False,
        "max_per_image": 1,
        "image_side": 64,
        "salt": "s",
        "fingerprint": fingerprint(contents),
    }
    assert pairs_info(lake, "p").fingerprint == fingerprint(contents)
    assert_adds_up(manifest.counts)


class TestWhichListings:
    def test_each_rule_that_leaves_one_out_is_counted(self, lake: Lake) -> None:
        made = [
            *some(12),
            listing("sold", status=Status.SOLD),
            listing("reserved", status=Status.RESERVED),
            listing("deleted", status=Status.DELETED),
            listing("message", title="さくら様専用"),
            listing("no words", title="！！"),
            listing("twice", minute=1),
            listing("twice", minute=2, title="the newer one"),
        ]
        put(lake, made)
        # Over again, with rows that are no listings, as somebody else's program might land them.
        bad = [asdict(listing("m000")) | {"status": "on_hold"}, asdict(listing("")), asdict(listing("later", SECOND))]
        land_unchecked(lake, FIRST, [*made, *bad])
        counts = sample(lake).counts
        assert items(lake) == sorted([*(f"m{n:03d}" for n in range(12)), "sold", "twice"])
        assert "the newer one" in {row["title"] for kind in (TRAIN, VALIDATION) for row in rows(lake, kind)}
        assert (counts["read"], counts["superseded"], counts["drawn"]) == (22, 1, 14)
        assert {reason: counts[reason] for reason in LEFT_OUT} == {
            "left_out_invalid": 3,
            "left_out_test_period": 0,
            "left_out_reserved": 1,
            "left_out_deleted": 1,
            "left_out_message": 2,
        }
        assert_adds_up(counts)

    def test_one_that_was_reserved_later_is_learnt_from_as_it_was_before(self, lake: Lake) -> None:
        put(lake, [*some(12), listing("a", title="A coat")])
        put(lake, [listing("a", SECOND, title="Anna様専用", status=Status.RESERVED)], SECOND)
        counts = sample(lake, window=BOTH).counts
        titles = {row["item_id"]: row["title"] for kind in (TRAIN, VALIDATION) for row in rows(lake, kind, BOTH)}
        assert titles["a"] == "A coat"
        assert (counts["left_out_reserved"], counts["superseded"]) == (1, 0)

    def test_one_that_landed_late_is_learnt_from_with_its_window(self, lake: Lake) -> None:
        put(lake, some(12))
        put(lake, [listing("late", FIRST), listing("m000", FIRST, title="an old one")], SECOND)
        counts = sample(lake, window=BOTH).counts
        titles = {row["item_id"]: row["title"] for kind in (TRAIN, VALIDATION) for row in rows(lake, kind, BOTH)}
        assert len(titles) == 13
        assert "late" in titles
        assert (counts["read"], counts["superseded"]) == (14, 1)
        assert_adds_up(counts)

    def test_only_versions_of_the_window_count(self, lake: Lake) -> None:
        put(lake, [*some(12), listing("late", minute=70)])
        hour = Window(FIRST.start, FIRST.start + timedelta(hours=1))
        assert sample(lake, window=hour).counts["read"] == 12

    def test_nothing_is_learnt_from_the_test_period_nor_from_test_products(self, lake: Lake) -> None:
        put(lake, [*(listing(f"m{n:03d}", minute=n) for n in range(60)), listing("late", minute=24 * 60 - 1)])
        counts = sample(lake, "--test_share", "0.3", "--test_time", "0.1", share=0.3).counts
        tested = [item for n in range(60) if split_of("pairs", f"item {(item := f'm{n:03d}')}", 0.3, 0.3) == "test"]
        assert 5 < len(tested) == counts["test_products"] < 35
        assert counts["left_out_test_period"] == 1
        assert items(lake) == sorted({f"m{n:03d}" for n in range(60)} - set(tested))
        assert_adds_up(counts)

    def test_unreadable_photos_are_dead_letters(self, lake: Lake) -> None:
        land_marketplace(lake)
        counts = sample(lake, window=BOTH).counts
        assert [(row["item_id"], row["stage"]) for row in rows(lake, DEAD_LETTERS, BOTH)] == [("m002", "decode")]
        assert "m002" not in items(lake, window=BOTH)
        assert (counts["drawn"], counts["dead_lettered"]) == (40, 1)
        assert_adds_up(counts)

    def test_too_many_unreadable_photos_fail_the_job(self, lake: Lake) -> None:
        put(lake, some(8))
        for item in ("m001", "m002"):
            lake.write_bytes(f"{image_root(lake)}/{item}.jpg", b"")
        sentence = failure(lake)
        assert "2 of 8 listings are unusable, more than LENS_MAX_DEAD_LETTER_RATIO=0.1 allows" in sentence
        assert "empty file (2)" in sentence


class TestTheDraw:
    def test_repeats_down_to_the_bytes_and_replaces_what_was_there(self, lake: Lake) -> None:
        put(lake, some(24))
        before = sample(lake, "--pairs", "16")
        order = [row["item_id"] for row in rows(lake, TRAIN)]
        after = sample(lake, "--pairs", "16")
        assert after.counts == before.counts
        assert after.parameters == before.parameters
        assert after.files != before.files
        assert [row["item_id"] for row in rows(lake, TRAIN)] == order

    def test_takes_the_lowest_numbers_and_nests(self, lake: Lake) -> None:
        put(lake, some(40))
        lowest = sorted((f"m{n:03d}" for n in range(40)), key=lambda item: sample_number("pairs", item))
        drawn = {}
        for wanted in (10, 20, 100):
            counts = sample(lake, "--pairs", str(wanted), name=f"p{wanted}").counts
            drawn[wanted] = items(lake, name=f"p{wanted}")
            assert counts["drawn"] == min(wanted, 40) == 40 - counts["not_drawn"]
            assert drawn[wanted] == sorted(lowest[:wanted])
        assert set(drawn[10]) < set(drawn[20]) < set(drawn[100])

    def test_balanced_draws_as_evenly_as_can_be_from_the_top_two_levels(self, lake: Lake) -> None:
        few = [listing(f"few{n}", category=("B", "C", f"leaf {n}")) for n in range(3)]
        put(lake, [*some(30), *few, *(listing(f"other{n}", category=("A", "X")) for n in range(10))])
        small = sample(lake, "--pairs", "17", "--balance", name="small").counts
        large = sample(lake, "--pairs", "23", "--balance", name="large").counts
        assert (small["drawn"], large["drawn"]) == (17, 23)
        by_stratum = {stratum: sum(item.startswith(stratum) for item in items(lake, name="small")) for stratum in "mfo"}
        assert by_stratum == {"m": 7, "f": 3, "o": 7}
        assert set(items(lake, name="small")) < set(items(lake, name="large"))

    def test_fetches_only_what_is_sampled(self, lake: Lake) -> None:
        put(lake, some(20))
        drawn = sorted((f"m{n:03d}" for n in range(20)), key=lambda item: sample_number("pairs", item))[:8]
        for path in Path(image_root(lake)).iterdir():
            if path.stem not in drawn:
                path.unlink()
        assert sample(lake, "--pairs", "8").counts["dead_lettered"] == 0


class TestTwins:
    def test_the_same_photo_is_kept_once_by_the_lowest_number(self, lake: Lake) -> None:
        put(lake, some(16), m001=7, m002=7, m003=7)
        first = min(("m001", "m002", "m003"), key=lambda item: sample_number("pairs", item))
        counts = sample(lake).counts
        assert {"m001", "m002", "m003"} & set(items(lake)) == {first}
        assert counts["near_duplicate"] == 2
        assert_adds_up(counts)

    def test_so_is_one_that_was_scaled_and_recompressed(self, lake: Lake) -> None:
        put(lake, some(16), m001=7)
        lake.write_bytes(f"{image_root(lake)}/m002.jpg", scene(7, side=120, quality=75))
        assert sample(lake).counts["near_duplicate"] == 1

    def test_so_many_may_be_kept_but_never_in_both_parts(self, lake: Lake) -> None:
        alike = [f"m{n:03d}" for n in range(6)]
        put(lake, some(16), **dict.fromkeys(alike, 7))
        counts = sample(lake, "--max_per_image", "4").counts
        first = sorted(alike, key=lambda item: sample_number("pairs", item))
        parts = {item: split_of("pairs", f"item {item}", 0.5, 0) for item in alike}
        kept = [
            item for rank, item in enumerate(first[:4]) if {parts[other] for other in first[:rank]} <= {parts[item]}
        ]
        assert 0 < len(kept) < 4
        assert sorted(set(alike) & set(items(lake))) == sorted(kept)
        assert (counts["near_duplicate"], counts["twin_across_split"]) == (2, 4 - len(kept))
        assert_adds_up(counts)

    def test_a_larger_sample_drops_nothing_that_a_smaller_one_keeps(self, lake: Lake) -> None:
        alike = {f"{stratum}{n:02d}": n % 5 for stratum in "ab" for n in range(20)}
        listings = [listing(item, category=("A", item[0])) for item in alike]
        put(lake, [*listings, *(listing(f"c{n}", category=("A", "c")) for n in range(3))], **alike)
        for options in ((), ("--balance", "--max_per_image", "3")):
            kept: set[str] = set()
            for wanted in (12, 24, 43):
                name = f"p{wanted}{len(options)}"
                sample(lake, "--pairs", str(wanted), *options, name=name)
                assert kept <= set(items(lake, name=name))
                kept = set(items(lake, name=name))

    def test_a_seller_s_listings_of_one_title_are_on_one_side(self, lake: Lake) -> None:
        titles = {f"m{n:03d}": f"{'Red  BAG' if n % 2 else 'red bag!'} {n // 4}" for n in range(40)}
        put(lake, [listing(item, title=title, seller_id="s") for item, title in titles.items()])
        sample(lake)
        sides = [{int(item[1:]) // 4 for item in items(lake, kind)} for kind in (TRAIN, VALIDATION)]
        assert not sides[0] & sides[1]
        assert all(sides)

    @pytest.mark.parametrize("split_by", ["product", "seller"])
    def test_no_group_is_on_both_sides_of_the_split(self, lake: Lake, split_by: str) -> None:
        codes = {f"m{n:03d}": f"code{n % 8}" if n < 32 else None for n in range(40)}
        put(lake, [listing(item, **{f"{split_by}_id": code}) for item, code in codes.items()])
        sample(lake, "--split_by", split_by)
        sides = {kind: {codes[item] or item for item in items(lake, kind)} for kind in (TRAIN, VALIDATION)}
        assert not sides[TRAIN] & sides[VALIDATION]
        assert all(len(groups) > 2 for groups in sides.values())


class TestShards:
    def test_hold_rows_of_all_kinds_in_small_groups(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shards, "PAIRS_PER_GROUP", 4)
        put(lake, some(60))
        manifest = sample(lake)
        files = [pq.ParquetFile(Path(lake.folder(pairs("p"), FIRST), name)) for name in manifest.files[TRAIN]]
        assert len(files) == 7
        assert all(file.metadata.row_group(n).num_rows <= 4 for file in files for n in range(file.num_row_groups))
        # In the order of neither the catalog nor the draw.
        ids = [row["item_id"] for row in rows(lake, TRAIN)]
        assert ids != sorted(ids)
        assert ids != sorted(ids, key=lambda item: sample_number("pairs", item))


class TestSessions:
    OPTIONS = ("--sessions", "50", "--test_share", "0.3", "--test_time", "0.25")
    COUNT = 20

    @pytest.fixture
    def searched(self, lake: Lake) -> Lake:
        """Two items of each of twenty products, photos to search by before and in the test period, and one that is broken."""
        put(lake, [listing(item, minute=n, product_id=f"p{n // 2}") for n, item in enumerate(self.all_items())])
        self.take_query_photos(lake)
        lake.write_bytes(f"{image_root(lake)}/broken.jpg", b"no image")
        return lake

    @staticmethod
    def take_query_photos(lake: Lake) -> None:
        for seed, name in enumerate(("early.jpg", "late.jpg")):
            lake.write_bytes(f"{image_root(lake)}/{name}", scene(seed))

    def all_items(self) -> list[str]:
        return [f"m{n:03d}" for n in range(2 * self.COUNT)]

    def of(self, split: Split) -> list[str]:
        """The items whose products are of a part."""
        parts = [split_of("pairs", f"product p{n}", 0.3, 0.3) for n in range(self.COUNT)]
        return [item for n, item in enumerate(self.all_items()) if parts[n // 2] == split]

    @staticmethod
    def session(name: str, *shown: str, tapped: int = 1, hour: int = 2, query: str = "") -> Session:
        """One in which the first few of the shown items were tapped, by default before the test period."""
        query = query or ("late.jpg" if hour >= 18 else "early.jpg")
        taps = tuple(n < tapped for n in range(len(shown)))
        return Session(name, FIRST.start + timedelta(hours=hour), Query((query,)), shown, taps)

    @pytest.fixture
    def enough(self) -> list[Session]:
        """One session to validate on, and two to test on."""
        validation, test = self.of("validation"), self.of("test")
        return [
            self.session("validation", *validation[:4]),
            self.session("test0", test[0], *test[2:4], hour=20),
            self.session("test1", test[2], test[0], hour=23),
        ]

    def test_come_with_the_photos_of_what_they_showed(self, searched: Lake, enough: list[Session]) -> None:
        land_sessions(searched, FIRST, enough)
        counts = sample(searched, *self.OPTIONS, share=0.3).counts
        [row] = rows(searched, VALIDATION_SESSIONS)
        assert (row["session_id"], tuple(row["shown"])) == ("validation", enough[0].shown)
        assert row["tapped"] == [True, False, False, False]
        assert row["groups"] == [f"product p{int(enough[0].shown[0][1:]) // 2}"]
        shown = sorted({item for session in enough for item in session.shown})
        assert items(searched, SESSION_ITEMS) == shown
        for image in (row["image"], *(item["image"] for item in rows(searched, SESSION_ITEMS))):
            with Image.open(io.BytesIO(image)) as opened:
                assert (opened.format, opened.size) == ("JPEG", (64, 64))
        assert (counts[VALIDATION_SESSIONS], counts[TEST_SESSIONS], counts["session_items"]) == (1, 2, len(shown))
        files = searched.manifest(pairs("p"), FIRST).files
        schemas = {VALIDATION_SESSIONS: PAIR_SESSION_SCHEMA, TEST_SESSIONS: PAIR_SESSION_SCHEMA}
        for kind, schema in (schemas | {SESSION_ITEMS: SESSION_ITEM_SCHEMA}).items():
            assert pq.read_schema(Path(searched.folder(pairs("p"), FIRST), files[kind][0])).equals(schema)

    def test_are_split_by_time_and_by_every_tapped_product(self, searched: Lake, enough: list[Session]) -> None:
        train, validation, test = (self.of(split) for split in ("train", "validation", "test"))
        rejected = [
            self.session("trained on", train[0]),
            self.session("trained on, late", train[0], hour=22),
            self.session("partly trained on", test[0], train[0], tapped=2, hour=22),
            self.session("of both", test[0], validation[0], tapped=2, hour=22),
            self.session("chosen by, late", validation[0], hour=22),
            self.session("tested, early", test[0]),
        ]
        # What was shown and not tapped does not matter.
        beside = self.session("beside", test[0], *train[:2], *validation[:2], hour=18)
        land_sessions(searched, FIRST, [*enough, beside, *rejected])
        counts = sample(searched, *self.OPTIONS, share=0.3).counts
        assert [row["session_id"] for row in rows(searched, VALIDATION_SESSIONS)] == ["validation"]
        assert {row["session_id"] for row in rows(searched, TEST_SESSIONS)} == {"test0", "test1", "beside"}
        assert counts["sessions_not_held_out"] == len(rejected)
        assert not {row["item_id"] for kind in (TRAIN, VALIDATION) for row in rows(searched, kind)} & set(test)
        assert_adds_up(counts)

    def test_are_left_out_by_reason_and_counted(self, searched: Lake, enough: list[Session]) -> None:
        validation = self.of("validation")
        searched.write_bytes(f"{image_root(searched)}/{validation[-1]}.jpg", b"")
        good = self.session("good", *validation[:2])
        land_sessions(
            searched,
            FIRST,
            [
                *enough,
                good,
                self.session("no tap", *validation[:2], tapped=0),
                self.session("unreadable", *validation[:2], query="broken.jpg"),
                self.session("shown twice", validation[0], validation[0]),
                replace(good, session_id="by words", query=Query((), "a bag")),
                replace(good, session_id="by photo and words", query=Query(("early.jpg",), "a bag")),
                Session("malformed", FIRST.start, Query(("early.jpg",)), ("m001", "m002"), (True,)),
                self.session("an item's photo", validation[0], validation[-1]),
                self.session("an unknown item", validation[0], "x"),
                self.session("an unknown item tapped", "x", validation[0]),
            ],
        )
        counts = sample(searched, *self.OPTIONS, share=0.3).counts
        assert {row["session_id"] for row in rows(searched, VALIDATION_SESSIONS)} == {"validation", "good"}
        assert {reason: counts[f"sessions_{reason}"] for reason in (*SESSION_UNUSABLE, *SESSION_LEFT_OUT)} == {
            "malformed": 2,
            "nothing_tapped": 1,
            "not_by_one_photo": 2,
            "not_held_out": 0,
            "query_unreadable": 1,
            "item_unreadable": 3,
        }
        # Only what a session that is kept showed is stored.
        assert validation[-1] not in items(searched, SESSION_ITEMS)
        assert_adds_up(counts)

    def test_are_drawn_by_their_ids_from_either_period(self, searched: Lake, enough: list[Session]) -> None:
        sessions = {kind: [f"{kind}{n}" for n in range(20)] for kind in (VALIDATION_SESSIONS, TEST_SESSIONS)}
        validation, test = self.of("validation"), self.of("test")
        land_sessions(
            searched,
            FIRST,
            [
                *(self.session(name, validation[0]) for name in sessions[VALIDATION_SESSIONS]),
                *(self.session(name, test[2 * (n % 2)], hour=20) for n, name in enumerate(sessions[TEST_SESSIONS])),
            ],
        )
        # As many as tap held-out products once in 2 and once in 5 times.
        options = ("--sessions", "2", "--test_share", "0.2", "--test_time", "0.25")
        counts = sample(searched, *options, "--salt", "pairs", share=0.5).counts
        for kind, wanted in ((VALIDATION_SESSIONS, 4), (TEST_SESSIONS, 10)):
            lowest = sorted(sessions[kind], key=lambda name: sample_number("pairs", name))[:wanted]
            assert {row["session_id"] for row in rows(searched, kind)} <= set(lowest)
        assert counts["sessions_drawn"] == 14
        assert_adds_up(counts)

    @pytest.mark.parametrize("alike", ["query", "tapped item"])
    @pytest.mark.parametrize("other", ["train", "validation"])
    def test_are_seen_when_a_photo_looks_like_one_of_another_part(
        self, searched: Lake, enough: list[Session], other: Split, alike: str
    ) -> None:
        test = self.of("test")
        item = self.of(other)[0]
        near = scene(sample_number("scene", item), side=150, quality=80)
        name = "near.jpg" if alike == "query" else f"{test[4]}.jpg"
        searched.write_bytes(f"{image_root(searched)}/{name}", near)
        query = name if alike == "query" else ""
        # One that shows it without a tap is unseen.
        shows = self.session("shows", test[0], test[4], hour=20)
        land_sessions(searched, FIRST, [*enough, self.session("near", test[4], hour=20, query=query), shows])
        counts = sample(searched, *self.OPTIONS, share=0.3).counts
        unseen = {row["session_id"]: row["unseen"] for row in rows(searched, TEST_SESSIONS)}
        assert {name for name, is_unseen in unseen.items() if not is_unseen} == {"near"}
        assert (counts["test_sessions_unseen"], counts["validation_sessions_unseen"]) == (3, 1)

    def test_are_seen_when_the_photo_chose_the_checkpoint(self, searched: Lake, enough: list[Session]) -> None:
        searched.write_bytes(f"{image_root(searched)}/again.jpg", scene(50))
        chosen = replace(enough[0], query=Query(("again.jpg",)))
        tested = self.session("again", self.of("test")[0], hour=20, query="again.jpg")
        land_sessions(searched, FIRST, [chosen, *enough[1:], tested])
        sample(searched, *self.OPTIONS, share=0.3)
        assert {row["session_id"]: row["unseen"] for row in rows(searched, TEST_SESSIONS)} == {
            "test0": True,
            "test1": True,
            "again": False,
        }
        assert [row["unseen"] for row in rows(searched, VALIDATION_SESSIONS)] == [True]

    def test_are_seen_when_the_item_was_learnt_from_under_another_title(self, lake: Lake) -> None:
        """Its seller renames it in the test period, so that it falls in another group, and takes another photo."""
        titles: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for n in range(60):
            title = f"title {n}"
            titles[split_of("pairs", f"seller s title {title}", 0.3, 0.3)].append(title)
        before = [listing(f"m{n:03d}", minute=n, title=title, seller_id="s") for n, title in enumerate(titles["train"])]
        put(lake, before, FIRST)
        held_out = [
            listing(f"{split}{n}", title=title, seller_id="s")
            for split in ("validation", "test")
            for n, title in enumerate(titles[split])
        ]
        renamed = listing("m000", minute=23 * 60, title=titles["test"][0], seller_id="s", image_uri="new.jpg")
        put(lake, [*before, *held_out, renamed], FIRST)
        lake.write_bytes(f"{image_root(lake)}/new.jpg", scene(9))
        self.take_query_photos(lake)
        sessions = [
            self.session("validation", "validation0"),
            *(self.session(name, name, hour=23) for name in ("test1", "test2", "m000")),
        ]
        land_sessions(lake, FIRST, sessions)
        sample(lake, *self.OPTIONS, share=0.3)
        assert {row["session_id"]: row["unseen"] for row in rows(lake, TEST_SESSIONS)} == {
            "test1": True,
            "test2": True,
            "m000": False,
        }

    def test_look_items_up_in_all_windows_before_their_end_as_they_were_searchable_last(
        self, searched: Lake, enough: list[Session]
    ) -> None:
        validation, test = self.of("validation"), self.of("test")
        old, gone = validation[0], validation[2]
        changed = {"product_id": f"p{int(old[1:]) // 2}", "image_uri": "old2.jpg"}
        put(
            searched,
            [
                *(listing(f"n{n:03d}", SECOND, minute=n) for n in range(24)),
                listing(old, SECOND, minute=1, **changed),
                listing(gone, SECOND, minute=1, status=Status.DELETED, image_uri="removed.jpg"),
            ],
            SECOND,
        )
        searched.write_bytes(f"{image_root(searched)}/removed.jpg", b"")
        third = Window(SECOND.end, SECOND.end + timedelta(days=1))
        put(searched, [listing(old, third, image_uri="later.jpg")], third)
        for name, side in ((f"{old}.jpg", 32), ("old2.jpg", 40), ("later.jpg", 48)):
            searched.write_bytes(f"{image_root(searched)}/{name}", scene(2, side=side))
        day = timedelta(days=1)
        tested = [replace(session, searched_at=session.searched_at + day) for session in enough[1:]]
        land_sessions(searched, SECOND, [replace(self.session("s", old, gone), searched_at=SECOND.start), *tested])
        sample(searched, *self.OPTIONS, window=SECOND, share=0.3)
        sides = {
            row["item_id"]: Image.open(io.BytesIO(row["image"])).size[0]
            for row in rows(searched, SESSION_ITEMS, window=SECOND)
        }
        assert (sides[old], sides[gone], sides[test[0]]) == (40, 64, 64)

    def test_that_have_not_landed_are_refused_unless_none_are_asked_for(self, lake: Lake) -> None:
        put(lake, some(12))
        assert "sessions of" in (sentence := failure(lake, "--sessions", "3"))
        assert "give --sessions 0" in sentence
        assert sample(lake, "--sessions", "0").counts["sessions_read"] == 0

    @pytest.mark.parametrize(
        ("kept", "sentence"),
        [
            (("test0", "test1"), "no session of .* is left to validate on"),
            (("validation",), "no unseen session of .* is left to test on"),
            (("validation", "test0"), "all 1 unseen sessions of .* to test on are of one product"),
        ],
    )
    def test_that_leave_a_part_empty_are_refused(
        self, searched: Lake, enough: list[Session], kept: Sequence[str], sentence: str
    ) -> None:
        land_sessions(searched, FIRST, [session for session in enough if session.session_id in kept])
        said = failure(searched, *self.OPTIONS, share=0.3)
        assert re.match(sentence, said)
        assert "or --sessions 0 to validate on pairs alone" in said

    def test_of_the_search_service_s_log_are_not_kept_longer_than_it_is(
        self, searched: Lake, enough: list[Session]
    ) -> None:
        logged = self.session("logged", self.of("validation")[0])
        land_sessions(searched, SECOND, [replace(logged, searched_at=SECOND.start)], **FROM_LOG)
        put(searched, some(12), SECOND)
        assert "give --sessions 0" in failure(searched, "--sessions", "3", window=SECOND)
        land_sessions(searched, FIRST, enough)
        counts = sample(searched, *self.OPTIONS, window=FIRST, share=0.3).counts
        assert counts["sessions_read"] == len(enough)


class TestRefusals:
    def test_listings_that_have_not_landed(self, lake: Lake) -> None:
        assert "listings of" in (sentence := failure(lake))
        assert "have not landed" in sentence

    def test_a_window_without_listings(self, lake: Lake) -> None:
        land(lake, FIRST, [])
        assert "no train pair is left of [2026-11-01" in failure(lake)

    def test_a_part_that_is_empty(self, lake: Lake) -> None:
        put(lake, some(6))
        assert "no validation pair is left" in failure(lake, share=1e-9)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--pairs", "0"),
            ("--sessions", "-1"),
            ("--max_per_image", "0"),
            ("--image_side", "4"),
            ("--validation_share", "1"),
            ("--validation_share", "0"),
            ("--test_share", "1"),
            ("--test_time", "0"),
        ],
    )
    def test_options_out_of_their_range(self, lake: Lake, option: str, value: str) -> None:
        assert failure(lake, option, value).startswith(f"{option} is {value}")

    def test_shares_that_leave_nothing_to_train_on(self, lake: Lake) -> None:
        said = failure(lake, "--test_share", "0.6", share=0.4)
        assert said.startswith("--validation_share and --test_share are 0.4 and 0.6: together they must leave some")

    def test_a_name_that_another_window_has(self, lake: Lake) -> None:
        put(lake, some(12))
        put(lake, [listing("b", SECOND)], SECOND)
        sample(lake)
        with pytest.raises(LensError, match="pairs/p is a sample of .2026-11-01 .* already: choose another --name"):
            sample(lake, window=SECOND)

    def test_a_run_that_dies_leaves_the_sample_as_it_was(self, lake: Lake) -> None:
        put(lake, some(16))
        before, ids = sample(lake), items(lake)

        def broken(*_: object) -> None:
            raise RuntimeError("the machine is on fire")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sample_pairs, "fingerprint", broken)
            with pytest.raises(RuntimeError, match="on fire"):
                sample(lake, "--pairs", "8")
        assert lake.manifest(pairs("p"), FIRST) == before
        assert items(lake) == ids
        assert sample(lake, "--pairs", "8").counts["drawn"] == 8
        assert len(items(lake)) == 8
