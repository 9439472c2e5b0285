"""Sampling pairs: every rule that leaves a listing out, a draw that repeats and nests, and no twin across the split."""

from __future__ import annotations

import io
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
from beam_jobs.pairs.counts import LEFT_OUT, SESSION_INCOMPLETE, SESSION_UNUSABLE, TWINS
from beam_jobs.sample_pairs import main
from listing_lens.errors import LensError
from listing_lens.lake.pairs import (
    PAIR_SCHEMA,
    PAIR_SESSION_SCHEMA,
    PAIR_SESSIONS,
    SESSION_ITEM_SCHEMA,
    SESSION_ITEMS,
    TRAIN,
    VALIDATION,
    fingerprint,
    pair_content,
    pairs,
    pairs_info,
)
from listing_lens.lake.records import Listing, Query, Session, Status
from listing_lens.lake.searches import FROM_LOG
from listing_lens.lake.window import Window
from listing_lens.lake.windows import DEAD_LETTERS, Lake, Manifest
from models.pairs.split import split_of
from models.sampling import sample_number

BOTH = Window(FIRST.start, SECOND.end)


def sample(lake: Lake, *options: str, window: Window = FIRST, name: str = "p", share: float = 0.5) -> Manifest:
    """Run the job, without sessions unless the options say how many, and return the manifest that it left."""
    bounds = ["--window_start", window.start.isoformat(), "--window_end", window.end.isoformat()]
    defaults = ["--sessions", "0", "--image_side", "64", "--validation_share", str(share)]
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
    read = ("superseded", "not_drawn", "dead_lettered", TRAIN, VALIDATION, *LEFT_OUT, *TWINS)
    assert counts["read"] == sum(counts[name] for name in read)
    left_out = [f"sessions_{reason}" for reason in (*SESSION_UNUSABLE, *SESSION_INCOMPLETE)]
    assert counts["sessions_read"] == sum(counts[name] for name in ("sessions", "sessions_not_drawn", *left_out))


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
        parts = {item: split_of("pairs", f"item {item}", 0.5) for item in alike}
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
    SHOWN = ("m000", "m001", "m002", "m003")

    @pytest.fixture
    def searched(self, lake: Lake) -> Lake:
        """Items m000 to m023, two of each product, a photo to search by, and one that is broken."""
        put(lake, [listing(f"m{n:03d}", minute=n, product_id=f"p{n // 2}") for n in range(24)])
        lake.write_bytes(f"{image_root(lake)}/query.jpg", scene(1))
        lake.write_bytes(f"{image_root(lake)}/broken.jpg", b"no image")
        return lake

    @staticmethod
    def session(name: str, tapped: str, shown: Sequence[str] = SHOWN, query: str = "query.jpg") -> Session:
        taps = tuple(item == tapped for item in shown)
        return Session(name, FIRST.start + timedelta(hours=2), Query((query,)), tuple(shown), taps)

    def test_come_with_the_photos_of_what_they_showed(self, searched: Lake) -> None:
        land_sessions(searched, FIRST, [self.session("s", "m001")])
        counts = sample(searched, "--sessions", "5").counts
        [row] = rows(searched, PAIR_SESSIONS)
        assert (row["session_id"], row["shown"]) == ("s", list(self.SHOWN))
        assert row["tapped"] == [False, True, False, False]
        assert items(searched, SESSION_ITEMS) == list(self.SHOWN)
        for image in (row["image"], *(item["image"] for item in rows(searched, SESSION_ITEMS))):
            with Image.open(io.BytesIO(image)) as opened:
                assert (opened.format, opened.size) == ("JPEG", (64, 64))
        assert (counts["sessions"], counts["session_items"]) == (1, 4)
        files = searched.manifest(pairs("p"), FIRST).files
        for kind, schema in ((PAIR_SESSIONS, PAIR_SESSION_SCHEMA), (SESSION_ITEMS, SESSION_ITEM_SCHEMA)):
            assert pq.read_schema(Path(searched.folder(pairs("p"), FIRST), files[kind][0])).equals(schema)

    def test_are_left_out_by_reason_and_counted(self, searched: Lake) -> None:
        searched.write_bytes(f"{image_root(searched)}/m009.jpg", b"")
        land_sessions(
            searched,
            FIRST,
            [
                self.session("good", "m001"),
                self.session("no tap", "nothing"),
                self.session("unreadable", "m001", query="broken.jpg"),
                self.session("shown twice", "m001", ("m001", "m001")),
                replace(self.session("by words", "m001"), query=Query((), "a bag")),
                replace(self.session("by photo and words", "m001"), query=Query(("query.jpg",), "a bag")),
                Session("malformed", FIRST.start, Query(("query.jpg",)), ("m001", "m002"), (True,)),
                self.session("an item's photo", "m001", ("m001", "m009")),
                self.session("an unknown item", "m001", ("m001", "x")),
            ],
        )
        counts = sample(searched, "--sessions", "100").counts
        assert [row["session_id"] for row in rows(searched, PAIR_SESSIONS)] == ["good"]
        assert {reason: counts[f"sessions_{reason}"] for reason in (*SESSION_UNUSABLE, *SESSION_INCOMPLETE)} == {
            "malformed": 2,
            "nothing_tapped": 1,
            "not_by_one_photo": 2,
            "query_unreadable": 1,
            "item_unreadable": 2,
        }
        # Only what a session that is kept showed is stored.
        assert items(searched, SESSION_ITEMS) == list(self.SHOWN)
        assert_adds_up(counts)

    def test_are_drawn_by_their_ids(self, searched: Lake) -> None:
        names = [f"s{n}" for n in range(9)]
        land_sessions(searched, FIRST, [self.session(name, "m001") for name in names])
        counts = sample(searched, "--sessions", "4").counts
        lowest = sorted(names, key=lambda name: sample_number("pairs", name))[:4]
        assert sorted(row["session_id"] for row in rows(searched, PAIR_SESSIONS)) == sorted(lowest)
        assert counts["sessions_not_drawn"] == 5
        assert_adds_up(counts)

    def test_are_unseen_when_no_tapped_item_s_product_is_trained_on(self, searched: Lake) -> None:
        items_of = [f"m{n:03d}" for n in range(24)]
        land_sessions(searched, FIRST, [self.session(item, item, items_of) for item in items_of])
        counts = sample(searched, "--sessions", "100", "--pairs", "12").counts
        trained = {int(item[1:]) // 2 for item in items(searched, TRAIN)}
        unseen = {row["session_id"]: row["unseen"] for row in rows(searched, PAIR_SESSIONS)}
        assert unseen == {item: int(item[1:]) // 2 not in trained for item in items_of}
        assert 0 < counts["sessions_unseen"] == sum(unseen.values()) < 24

    def test_look_items_up_in_all_windows_before_their_end_as_they_were_searchable_last(self, lake: Lake) -> None:
        put(lake, [listing("old", image_uri="old1.jpg"), listing("gone")])
        put(
            lake,
            [
                *(listing(f"m{n:03d}", SECOND) for n in range(12)),
                listing("old", SECOND, minute=1, image_uri="old2.jpg"),
                listing("gone", SECOND, minute=1, status=Status.DELETED, image_uri="removed.jpg"),
            ],
            SECOND,
        )
        lake.write_bytes(f"{image_root(lake)}/removed.jpg", b"")
        third = Window(SECOND.end, SECOND.end + timedelta(days=1))
        put(lake, [listing("old", third, image_uri="later.jpg")], third)
        lake.write_bytes(f"{image_root(lake)}/query.jpg", scene(1))
        lake.write_bytes(f"{image_root(lake)}/old1.jpg", scene(2, side=32))
        lake.write_bytes(f"{image_root(lake)}/old2.jpg", scene(2, side=40))
        lake.write_bytes(f"{image_root(lake)}/later.jpg", scene(2, side=48))
        session = Session("s", SECOND.start, Query(("query.jpg",)), ("old", "gone"), (True, False))
        land_sessions(lake, SECOND, [session])
        sample(lake, "--sessions", "5", window=SECOND)
        sides = {
            row["item_id"]: Image.open(io.BytesIO(row["image"])).size[0]
            for row in rows(lake, SESSION_ITEMS, window=SECOND)
        }
        assert sides == {"old": 40, "gone": 64}

    def test_that_have_not_landed_are_refused_unless_none_are_asked_for(self, lake: Lake) -> None:
        put(lake, some(12))
        assert "sessions of" in (sentence := failure(lake, "--sessions", "3"))
        assert "give --sessions 0" in sentence
        assert sample(lake, "--sessions", "0").counts["sessions_read"] == 0

    def test_of_the_search_service_s_log_are_not_kept_longer_than_it_is(self, searched: Lake) -> None:
        second = self.session("logged", "m001")
        land_sessions(searched, SECOND, [replace(second, searched_at=SECOND.start)], **FROM_LOG)
        put(searched, some(12), SECOND)
        assert "give --sessions 0" in failure(searched, "--sessions", "3", window=SECOND)
        land_sessions(searched, FIRST, [self.session("theirs", "m001")])
        counts = sample(searched, "--sessions", "3", window=BOTH).counts
        assert [row["session_id"] for row in rows(searched, PAIR_SESSIONS, BOTH)] == ["theirs"]
        assert counts["sessions_read"] == 1


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
        ],
    )
    def test_options_out_of_their_range(self, lake: Lake, option: str, value: str) -> None:
        assert failure(lake, option, value).startswith(f"{option} is {value}")

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
