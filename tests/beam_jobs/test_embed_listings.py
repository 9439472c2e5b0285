"""Embedding: an encoder's table holds the newest version of each item, and every row that landed is accounted for.

A run reads what strangers wrote and fetches photos from servers of theirs; it may be killed, repeated, overtaken by another,
and given the same rows in other windows and another order. Whatever happens, the table is the same in the end, an item is in
it once, nothing is lost without a word, and no photo is embedded twice for nothing.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from tiny import (
    FIRST,
    NOW,
    SECOND,
    bounds,
    counts_of,
    image_root,
    items_of,
    land,
    land_marketplace,
    land_unchecked,
    listing,
    photo,
    take_photo,
)

from beam_jobs import embed_listings, fit_projection
from beam_jobs.embed_listings import COUNTS, main, newest_first
from beam_jobs.launcher import refusal
from listing_lens.embedding.sources import windows_not_embedded
from listing_lens.errors import LensError
from listing_lens.lake.dead_letters import DeadLetters, Letter
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.fits import load_fit
from listing_lens.lake.ledger import Ledger, Line
from listing_lens.lake.records import Listing, Status
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake
from models.encoders.encoder import Encoder
from models.encoders.files import identify
from models.encoders.small_siglip import save_untrained_siglip
from models.images import ImageLimits, decode_image
from models.registry import Registry

if TYPE_CHECKING:
    from tests.beam_jobs.conftest import PhotoServer

BOTH = Window(FIRST.start, SECOND.end)
CHECKOUT = Path(__file__).parents[2]


def line(lake: Lake, encoder_id: str, window: Window) -> Line:
    return Ledger(Embeddings(lake, encoder_id)).lines()[window]


def letters(lake: Lake, encoder_id: str) -> dict[str, Letter]:
    """The dead letters, by item."""
    found = list(DeadLetters(Embeddings(lake, encoder_id)).letters())
    by_item = {letter.item_id: letter for letter in found}
    assert len(by_item) == len(found)
    return by_item


def version(lake: Lake, encoder_id: str) -> int | None:
    """The latest version of the table; None when there is none."""
    return Embeddings(lake, encoder_id).items.version()


def refused(run: Callable[[], None]) -> str:
    """The sentence that a run ends with."""
    with pytest.raises(LensError) as failure:
        run()
    sentence = refusal(failure.value)
    assert sentence, failure.value
    return sentence


def state(lake: Lake, encoder_id: str) -> dict[str, tuple[int, bytes | None]]:
    """Of each item of the table its version and its photo: all that a run decides."""
    return {item: (row["version"], row["photo"]) for item, row in items_of(lake, encoder_id).items()}


class TestAWindow:
    def test_is_embedded_removed_or_set_aside_to_the_last_row(self, lake: Lake, encoder_id: str) -> None:
        land_marketplace(lake)
        main(bounds(FIRST))
        assert counts_of(lake, encoder_id, FIRST) == {
            "read": 20,
            "newest": 20,
            "embedded": 18,
            "removed": 1,
            "dead_lettered": 1,
            "encoded": 18,
        }
        assert set(line(lake, encoder_id, FIRST).counts) == set(COUNTS)
        found = items_of(lake, encoder_id)
        assert sorted(found) == [f"m{n:03d}" for n in range(20) if n != 2]
        assert [item for item, row in found.items() if row["embedding"] is None] == ["m003"]
        [letter] = letters(lake, encoder_id).values()
        assert (letter.item_id, letter.stage, letter.reason) == (
            "m002",
            "decode",
            "not an image of a supported format",
        )
        assert (letter.window, letter.transient, letter.attempts) == (FIRST, False, 1)

    def test_keeps_what_its_rows_say(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "a.jpg", 1)
        made = listing("a", minute=7, price=900, category=("家", "台所"), seller_id="s", product_id=None)
        land(lake, FIRST, [made])
        main(bounds(FIRST))
        row = items_of(lake, encoder_id)["a"]
        expected = asdict(made) | {"category": ["家", "台所"], "image_uri": f"{image_root(lake)}/a.jpg"}
        assert {name: row[name] for name in expected} == expected
        assert row["version"] == replace(made, image_uri=expected["image_uri"]).version
        assert (row["window"], row["backend"], len(row["photo"])) == (FIRST.name, "float32", 16)

    def test_has_the_encoder_s_own_embeddings(self, lake: Lake, encoder_id: str, untrained_siglip: Path) -> None:
        land_marketplace(lake)
        main(bounds(SECOND))
        encoder = Encoder.load(str(untrained_siglip))
        limits = ImageLimits(10**7, 10**7)
        embedded = [row for row in items_of(lake, encoder_id).values() if row["embedding"] is not None]
        assert len(embedded) == 20
        for row in embedded:
            image = decode_image(Path(row["image_uri"]).read_bytes(), limits, min_side=encoder.image_side)
            # As exactly as float16 keeps it.
            np.testing.assert_allclose(row["embedding"], encoder.embed([image])[0], atol=2e-4)
            assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-3)

    def test_of_rows_of_one_item_keeps_the_newest(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "a.jpg", 1)
        land(lake, FIRST, [listing("a", minute=n, price=n) for n in (2, 3, 1)])
        main(bounds(FIRST))
        assert items_of(lake, encoder_id)["a"]["price"] == 3
        assert counts_of(lake, encoder_id, FIRST) == {
            "read": 3,
            "older": 2,
            "newest": 1,
            "embedded": 1,
            "encoded": 1,
        }

    def test_takes_only_rows_of_its_time(self, lake: Lake, encoder_id: str) -> None:
        for name in ("a", "b"):
            take_photo(lake, f"{name}.jpg", 1)
        land(lake, FIRST, [listing("a", minute=30), listing("b", minute=90)])
        hour = Window(FIRST.start, FIRST.start + timedelta(hours=1))
        main(bounds(hour))
        assert list(items_of(lake, encoder_id)) == ["a"]
        assert counts_of(lake, encoder_id, hour)["read"] == 1

    def test_may_be_empty(self, lake: Lake, encoder_id: str) -> None:
        land(lake, FIRST, [])
        main(bounds(FIRST))
        assert counts_of(lake, encoder_id, FIRST) == {}
        assert windows_not_embedded(lake, encoder_id) == []
        assert items_of(lake, encoder_id) == {}

    def test_that_has_not_landed_is_no_empty_one(self, lake: Lake, encoder_id: str) -> None:
        land(lake, FIRST, [])
        with pytest.raises(LensError, match=r"listings of \[2026-11-02 .* have not landed .*lens catalog import"):
            main(bounds(BOTH))
        assert version(lake, encoder_id) is None
        assert Ledger(Embeddings(lake, encoder_id)).lines() == {}


class TestAPhoto:
    def test_of_the_same_bytes_is_encoded_once(self, lake: Lake, encoder_id: str) -> None:
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            take_photo(lake, f"{name}.jpg", seed)
        land(lake, FIRST, [listing(f"{name}{n}", image_uri=f"{name}.jpg") for name in "abc" for n in range(20)])
        main(bounds(FIRST))
        counts = counts_of(lake, encoder_id, FIRST)
        assert (counts["embedded"], counts["encoded"]) == (60, 2)
        found = {item: row["embedding"] for item, row in items_of(lake, encoder_id).items()}
        for name, same in (("a", "b7"), ("b", "a3"), ("c", "c0")):
            np.testing.assert_array_equal(found[f"{name}11"], found[same])
        assert found["a0"] @ found["c0"] < 0.999

    def test_that_did_not_change_is_reused_when_the_price_does(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "a.jpg", 1)
        land(lake, FIRST, [listing("a", price=1000)])
        main(bounds(FIRST))
        before = items_of(lake, encoder_id)["a"]
        land(lake, SECOND, [listing("a", SECOND, price=900)])
        main(bounds(SECOND))
        assert counts_of(lake, encoder_id, SECOND) == {"read": 1, "newest": 1, "reused": 1}
        after = items_of(lake, encoder_id)["a"]
        assert (after["price"], after["window"]) == (900, SECOND.name)
        assert (after["photo"], after["backend"]) == (before["photo"], before["backend"])
        # To the bit, however it is stored.
        np.testing.assert_array_equal(after["embedding"], before["embedding"])

    def test_that_changed_under_its_address_is_embedded_again(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "a.jpg", 1)
        land(lake, FIRST, [listing("a")])
        main(bounds(FIRST))
        before = items_of(lake, encoder_id)["a"]
        take_photo(lake, "a.jpg", 2)
        land(lake, SECOND, [listing("a", SECOND)])
        main(bounds(SECOND))
        assert counts_of(lake, encoder_id, SECOND) == {"read": 1, "newest": 1, "embedded": 1, "encoded": 1}
        after = items_of(lake, encoder_id)["a"]
        assert after["photo"] != before["photo"]
        assert after["embedding"] @ before["embedding"] < 0.999

    def test_that_is_back_after_a_sale_is_embedded(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "a.jpg", 1)
        land(lake, FIRST, [listing("a", minute=1, status=Status.DELETED)])
        land(lake, SECOND, [listing("a", SECOND)])
        main(bounds(FIRST))
        assert items_of(lake, encoder_id)["a"]["embedding"] is None
        main(bounds(SECOND))
        assert counts_of(lake, encoder_id, SECOND)["embedded"] == 1
        assert items_of(lake, encoder_id)["a"]["embedding"] is not None

    def test_has_one_embedding_whatever_its_window_and_batch(
        self, lake: Lake, encoder_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in "abcde":
            take_photo(lake, f"{name}.jpg", ord(name))
        land(lake, FIRST, [listing(name) for name in "abcde"])
        land(lake, SECOND, [listing("f", SECOND, image_uri="e.jpg")])
        main(bounds(FIRST))
        monkeypatch.setenv("LENS_ENCODER_BATCH_SIZE", "2")
        main(bounds(SECOND))
        found = items_of(lake, encoder_id)
        # A unit in the last place of float16.
        np.testing.assert_allclose(found["e"]["embedding"], found["f"]["embedding"], atol=2e-4)

    @pytest.mark.parametrize("status", [Status.SOLD, Status.DELETED])
    def test_of_what_was_sold_is_not_even_read(self, lake: Lake, encoder_id: str, status: Status) -> None:
        land(lake, FIRST, [listing("gone", status=status, image_uri="no-such.jpg")])
        main(bounds(FIRST))
        assert counts_of(lake, encoder_id, FIRST) == {"read": 1, "newest": 1, "removed": 1}
        row = items_of(lake, encoder_id)["gone"]
        assert (row["embedding"], row["photo"], row["backend"]) == (None, None, None)

    def test_that_is_gone_is_one_dead_letter(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "a.jpg", 1)
        land(lake, FIRST, [listing("a"), listing("gone")])
        main(bounds(FIRST))
        assert list(items_of(lake, encoder_id)) == ["a"]
        [letter] = letters(lake, encoder_id).values()
        assert (letter.item_id, letter.stage, letter.reason) == ("gone", "fetch", "cannot be read: no such file")
        assert not letter.transient

    @pytest.mark.parametrize(
        ("uri", "reason"),
        [("../secret.jpg", "outside the folders"), ("/etc/hostname", "outside the folders"), ("ftp://x/y", "ftp://")],
    )
    def test_outside_the_allowed_places_is_set_aside_alone(
        self, lake: Lake, encoder_id: str, uri: str, reason: str
    ) -> None:
        lake.write_bytes(f"{lake.root}/secret.jpg", photo(2))
        take_photo(lake, "ok.jpg", 1)
        land(lake, FIRST, [listing("a", image_uri=uri), *(listing(f"b{n}", image_uri="ok.jpg") for n in range(30))])
        main(bounds(FIRST))
        counts = counts_of(lake, encoder_id, FIRST)
        assert (counts["embedded"], counts["dead_lettered"], counts["encoded"]) == (30, 1, 1)
        assert reason in letters(lake, encoder_id)["a"].reason

    def test_whose_server_fails_for_now_may_be_tried_again(
        self, lake: Lake, encoder_id: str, photo_server: PhotoServer
    ) -> None:
        photo_server.away = True
        land(lake, FIRST, [listing("a", image_uri=f"{photo_server.root}a.jpg")])
        main(bounds(FIRST))
        letter = letters(lake, encoder_id)["a"]
        assert (letter.stage, letter.transient, letter.attempts) == ("fetch", True, 1)
        assert letter.reason == "the server answered 503, 3 times"

    def test_whose_numbers_are_none_is_a_dead_letter(
        self, lake: Lake, encoder_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        take_photo(lake, "a.jpg", 1)
        land(lake, FIRST, [listing("a")])
        encode = Encoder.encode

        def broken(self: Encoder, prepared: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.where(np.arange(encode(self, prepared).shape[1]) == 3, np.nan, encode(self, prepared))

        monkeypatch.setattr(Encoder, "encode", broken)
        main(bounds(FIRST))
        letter = letters(lake, encoder_id)["a"]
        assert (letter.stage, letter.transient) == ("encode", False)
        assert letter.reason == "the encoder's numbers are not finite, computed in float32"
        assert items_of(lake, encoder_id) == {}
        assert counts_of(lake, encoder_id, FIRST) == {"read": 1, "newest": 1, "dead_lettered": 1, "encoded": 1}


class TestAgain:
    def test_a_window_changes_nothing(self, lake: Lake, encoder_id: str) -> None:
        land_marketplace(lake)
        main(bounds(FIRST))
        before, at = items_of(lake, encoder_id), version(lake, encoder_id)
        main(bounds(FIRST))
        assert counts_of(lake, encoder_id, FIRST) == {
            "read": 20,
            "newest": 20,
            "unchanged": 19,
            # What was set aside is tried again.
            "dead_lettered": 1,
        }
        assert version(lake, encoder_id) == at
        after = items_of(lake, encoder_id)
        assert after.keys() == before.keys()
        assert all(after[item]["photo"] == before[item]["photo"] for item in before)

    def test_a_window_brings_nothing_back_that_is_newer_by_now(self, lake: Lake, encoder_id: str) -> None:
        land_marketplace(lake)
        main(bounds(FIRST))
        main(bounds(SECOND))
        before = state(lake, encoder_id)
        assert items_of(lake, encoder_id)["m001"]["status"] == Status.SOLD
        main(bounds(FIRST))
        assert counts_of(lake, encoder_id, FIRST)["overtaken"] == 1
        assert state(lake, encoder_id) == before

    def test_windows_give_the_same_in_any_order(self, lake: Lake, encoder_id: str) -> None:
        land_marketplace(lake)
        main(bounds(SECOND))
        main(bounds(FIRST))
        backwards = state(lake, encoder_id)
        shutil.rmtree(f"{lake.root}/embeddings")
        main(["--each_landed"])
        assert state(lake, encoder_id) == backwards

    def test_while_the_image_server_is_away_takes_nothing_away(
        self, lake: Lake, encoder_id: str, photo_server: PhotoServer
    ) -> None:
        photo_server.photos = {f"m{n}.jpg": photo(n) for n in range(10)}
        land(lake, FIRST, [listing(f"m{n}", image_uri=f"{photo_server.root}m{n}.jpg") for n in range(10)])
        main(bounds(FIRST))
        before = items_of(lake, encoder_id)
        photo_server.away = True
        photo_server.asked.clear()
        main(bounds(FIRST))
        # Also when all that is known of their window is forgotten.
        shutil.rmtree(Embeddings(lake, encoder_id).windows.path)
        main(["--each_landed"])
        assert not photo_server.asked
        assert items_of(lake, encoder_id).keys() == before.keys()
        assert all(row["embedding"] is not None for row in items_of(lake, encoder_id).values())
        assert letters(lake, encoder_id) == {}
        # A new version of all cannot be had now: the one that is there stays, and nothing is committed.
        land(lake, SECOND, [listing(f"m{n}", SECOND, image_uri=f"{photo_server.root}m{n}.jpg") for n in range(10)])
        assert "10 of 10 listings are unusable" in refused(lambda: main(bounds(SECOND)))
        assert state(lake, encoder_id) == {item: (row["version"], row["photo"]) for item, row in before.items()}

    def test_a_window_that_landed_again_is_embedded_again(self, lake: Lake, encoder_id: str) -> None:
        for name, seed in (("a", 1), ("b", 2)):
            take_photo(lake, f"{name}.jpg", seed)
        land(lake, FIRST, [listing("a")])
        main(["--each_landed"])
        assert windows_not_embedded(lake, encoder_id) == []
        land(lake, FIRST, [listing("a"), listing("b")])
        assert windows_not_embedded(lake, encoder_id) == [FIRST]
        main(["--each_landed"])
        assert windows_not_embedded(lake, encoder_id) == []
        assert counts_of(lake, encoder_id, FIRST) == {
            "read": 2,
            "newest": 2,
            "embedded": 1,
            "unchanged": 1,
            "encoded": 1,
        }
        assert set(items_of(lake, encoder_id)) == {"a", "b"}

    def test_a_window_that_landed_the_same_again_is_looked_at_once(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "a.jpg", 1)
        for _ in range(2):
            land(lake, FIRST, [listing("a")])
            main(["--each_landed"])
        assert counts_of(lake, encoder_id, FIRST) == {"read": 1, "newest": 1, "unchanged": 1}
        assert version(lake, encoder_id) == 2

    def test_a_dead_letter_goes_when_its_listing_is_embedded(self, lake: Lake, encoder_id: str) -> None:
        land(lake, FIRST, [listing("a"), listing("b", minute=1)])
        for name in "ab":
            lake.write_bytes(f"{image_root(lake)}/{name}.jpg", b"")
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("LENS_MAX_DEAD_LETTER_RATIO", "1")
            main(bounds(FIRST))
        assert set(letters(lake, encoder_id)) == {"a", "b"}
        take_photo(lake, "a.jpg", 1)
        # The one is embedded as it was, the other is sold by now.
        land(lake, SECOND, [listing("b", SECOND, status=Status.SOLD)])
        main(bounds(FIRST))
        assert set(letters(lake, encoder_id)) == {"b"}
        main(bounds(SECOND))
        assert letters(lake, encoder_id) == {}


class TestLateRows:
    """A row that lands in a window after its own time is welcome, counted, and no newer for being late."""

    def test_are_embedded_and_counted(self, lake: Lake, encoder_id: str) -> None:
        for name in ("late", "punctual"):
            take_photo(lake, f"{name}.jpg", 1)
        land(lake, SECOND, [listing("late", FIRST), listing("punctual", SECOND)])
        main(bounds(SECOND))
        assert set(items_of(lake, encoder_id)) == {"late", "punctual"}
        counts = counts_of(lake, encoder_id, SECOND)
        assert (counts["read"], counts["late"], counts["embedded"]) == (2, 1, 2)

    def test_lose_against_what_is_newer_and_win_over_what_is_older(self, lake: Lake, encoder_id: str) -> None:
        for name in "ab":
            take_photo(lake, f"{name}.jpg", ord(name))
        land(lake, FIRST, [listing("a", minute=10, price=10), listing("b", minute=10, price=10)])
        land(lake, SECOND, [listing("a", minute=20, price=20), listing("b", minute=5, price=5)])
        main(bounds(FIRST))
        main(bounds(SECOND))
        assert {item: row["price"] for item, row in items_of(lake, encoder_id).items()} == {"a": 20, "b": 10}
        counts = counts_of(lake, encoder_id, SECOND)
        assert (counts["late"], counts["reused"], counts["overtaken"]) == (2, 1, 1)

    def test_belong_to_the_first_part_of_a_window_that_is_embedded_in_parts(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "a.jpg", 1)
        land(lake, SECOND, [listing("a", FIRST)])
        halves = list(SECOND.split(timedelta(hours=12)))
        for half in reversed(halves):
            main(bounds(half))
        assert [counts_of(lake, encoder_id, half).get("late", 0) for half in halves] == [1, 0]
        assert list(items_of(lake, encoder_id)) == ["a"]


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "from after its window": ({"updated_at": FIRST.end}, "its updated_at .* is not before the end of"),
    "of an unknown status": ({"status": "on_hold"}, "its status 'on_hold' is none of on_sale, reserved, sold"),
    "without an id": ({"item_id": ""}, "its item_id is empty"),
    "of a null id": ({"item_id": None}, "it has no item_id"),
    "of an id too long": ({"item_id": "長" * 171}, "its item_id is longer than 512 bytes"),
    "without a title": ({"title": None}, "it has no title"),
    "of an empty category": ({"category": ["A", None]}, "its category has an empty level"),
    "from before 1970": ({"updated_at": FIRST.start.replace(year=1969)}, "is not between 1970 and 2112"),
}


class TestRowsThatAreNoListing:
    @pytest.mark.parametrize(("changes", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
    def test_are_refused_alone_and_by_name(
        self, lake: Lake, encoder_id: str, changes: dict[str, Any], reason: str
    ) -> None:
        take_photo(lake, "good.jpg", 1)
        bad = asdict(listing("bad")) | changes
        land_unchecked(lake, FIRST, [bad, listing("good")])
        main(bounds(FIRST))
        assert counts_of(lake, encoder_id, FIRST) == {
            "read": 2,
            "refused": 1,
            "newest": 1,
            "embedded": 1,
            "encoded": 1,
        }
        assert list(items_of(lake, encoder_id)) == ["good"]
        [letter] = DeadLetters(Embeddings(lake, encoder_id)).letters()
        assert (letter.stage, letter.transient, letter.listing) == ("read", False, None)
        assert letter.item_id == (bad["item_id"] or "")
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(letter.reason)

    def test_are_dead_letters_once_however_often_they_are_read(self, lake: Lake, encoder_id: str) -> None:
        land_unchecked(lake, FIRST, [asdict(listing("bad")) | {"status": "on_hold"}])
        for _ in range(2):
            main(bounds(FIRST))
            assert len(list(DeadLetters(Embeddings(lake, encoder_id)).letters())) == 1

    def test_fail_the_run_when_they_are_many(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "good.jpg", 1)
        bad = [asdict(listing(f"bad{n}")) | {"status": "on_hold"} for n in range(3)]
        land_unchecked(lake, FIRST, [*bad, listing("good")])
        sentence = refused(lambda: main(bounds(FIRST)))
        assert sentence.startswith(f"window {FIRST}: 3 of 4 listings are unusable")
        assert "its status 'on_hold' is none of" in sentence
        assert items_of(lake, encoder_id) == {}


class TestTooManyDeadLetters:
    def test_fail_the_run_and_commit_nothing(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "a.jpg", 1)
        for broken in ("b", "c"):
            lake.write_bytes(f"{image_root(lake)}/{broken}.jpg", b"")
        land(lake, FIRST, [listing(name) for name in "abc"])
        sentence = refused(lambda: main(bounds(FIRST)))
        assert sentence.startswith("window [2026-11-01 00:00:00Z, 2026-11-02 00:00:00Z): 2 of 3 listings are unusable")
        assert "LENS_MAX_DEAD_LETTER_RATIO=0.1" in sentence
        assert sentence.endswith("mostly: empty file (2)")
        assert version(lake, encoder_id) is None
        assert letters(lake, encoder_id) == {}
        assert line(lake, encoder_id, FIRST).state == "running"
        assert windows_not_embedded(lake, encoder_id) == [FIRST]

    def test_are_a_share_of_what_was_tried(self, lake: Lake, encoder_id: str) -> None:
        """Hundreds that need no photo do not make two broken ones of three few."""
        take_photo(lake, "a.jpg", 1)
        sold = [listing(f"sold{n}", status=Status.SOLD) for n in range(100)]
        land(lake, FIRST, [listing("a"), listing("gone1"), listing("gone2"), *sold])
        assert "2 of 3 listings are unusable" in refused(lambda: main(bounds(FIRST)))


class TestOverlappingWindows:
    def hourly(self) -> list[Window]:
        return list(FIRST.split(timedelta(hours=12)))

    def land(self, lake: Lake) -> None:
        """Two half days and the day that they are: the same rows, and one that only the day has."""
        for name in "abc":
            take_photo(lake, f"{name}.jpg", ord(name))
        rows = [listing("a", minute=1), listing("a", minute=800, price=5), listing("b", minute=801)]
        for half in self.hourly():
            land(lake, half, [row for row in rows if row.updated_at in half])
        land(lake, FIRST, [*rows, listing("c", minute=2)])

    def test_embed_an_item_once_together(self, lake: Lake, encoder_id: str) -> None:
        self.land(lake)
        main(["--each_landed"])
        found = items_of(lake, encoder_id)
        assert {item: row["price"] for item, row in found.items()} == {"a": 5, "b": 1200, "c": 1200}
        windows = [*self.hourly(), FIRST]
        counts = {window: counts_of(lake, encoder_id, window) for window in windows}
        # Each reads what landed in it: seven rows of three items.
        assert [counts[window]["read"] for window in windows] == [1, 2, 4]
        assert sum(counts[window].get("older", 0) for window in windows) == 4
        assert sum(counts[window].get("embedded", 0) for window in windows) == 3
        assert windows_not_embedded(lake, encoder_id) == []

    @pytest.mark.parametrize("backwards", [False, True], ids=["hourly, then daily", "daily, then hourly"])
    def test_embed_an_item_once_one_after_the_other(self, lake: Lake, encoder_id: str, backwards: bool) -> None:
        self.land(lake)
        windows = [*self.hourly(), FIRST]
        for window in reversed(windows) if backwards else windows:
            main(bounds(window))
        assert set(items_of(lake, encoder_id)) == {"a", "b", "c"}
        assert sum(counts_of(lake, encoder_id, window).get("encoded", 0) for window in windows) == 3

    def test_count_what_another_one_lacked(self, lake: Lake, encoder_id: str) -> None:
        """A window is run after one of the windows that cover it was landed: what is read is what covers it now."""
        self.land(lake)
        main(bounds(FIRST))
        assert windows_not_embedded(lake, encoder_id) == []


TIES = {
    "price": ({"price": 5}, {"price": 6}),
    "status": ({"status": Status.SOLD}, {"status": Status.ON_SALE}),
}


@pytest.mark.parametrize("changes", TIES.values(), ids=TIES.keys())
def test_versions_of_one_time_are_decided_alike_in_any_order(
    lake: Lake, encoder_id: str, changes: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    take_photo(lake, "a.jpg", 1)
    twins = [listing("a", minute=1, **change) for change in changes]
    # The later windows hold them late.
    windows = [FIRST, SECOND]
    found: list[dict[str, Any]] = []
    for order in itertools.permutations(twins):
        for window, made in zip(windows, order, strict=True):
            land(lake, window, [made])
        for arguments in ([bounds(FIRST), bounds(SECOND)], [bounds(SECOND), bounds(FIRST)], [["--each_landed"]]):
            shutil.rmtree(f"{lake.root}/embeddings", ignore_errors=True)
            for several in arguments:
                main(several)
            found.append(items_of(lake, encoder_id)["a"])
    assert len({(row["version"], row["price"], row["title"], row["status"]) for row in found}) == 1
    if "status" in changes[0]:
        assert found[0]["status"] == Status.SOLD


class TestEachLanded:
    def test_embeds_what_is_missing(self, lake: Lake, encoder_id: str) -> None:
        land_marketplace(lake)
        main(bounds(FIRST))
        before = line(lake, encoder_id, FIRST)
        main([*bounds(BOTH), "--each_landed"])
        assert line(lake, encoder_id, FIRST) == before
        assert counts_of(lake, encoder_id, SECOND) == {
            "read": 21,
            "newest": 21,
            "embedded": 20,
            "removed": 1,
            "encoded": 20,
        }
        after = line(lake, encoder_id, SECOND)
        main([*bounds(BOTH), "--each_landed"])
        assert line(lake, encoder_id, SECOND) == after

    def test_needs_no_window(self, lake: Lake, encoder_id: str) -> None:
        land_marketplace(lake)
        main(["--each_landed"])
        assert list(Ledger(Embeddings(lake, encoder_id)).lines()) == [FIRST, SECOND]
        # An item of both is embedded as it is in the second, and counted there.
        assert counts_of(lake, encoder_id, FIRST)["older"] == 1
        assert "m001" not in {item for item, row in items_of(lake, encoder_id).items() if row["embedding"] is not None}

    @given(
        rows=st.dictionaries(
            st.integers(0, 50).map(
                lambda hour: Window(FIRST.start + timedelta(hours=hour), FIRST.end + timedelta(hours=hour))
            ),
            st.integers(0, 9),
        )
    )
    def test_goes_from_the_newest_window_to_the_oldest(self, rows: dict[Window, int]) -> None:
        groups = newest_first(rows, 9)
        assert [window for group in groups for window in group] == sorted(rows, reverse=True)
        sizes = [sum(rows[window] for window in group) for group in groups]
        assert max(sizes, default=0) <= 9
        # No two neighbours would fit into one.
        assert all(size + rows[after[0]] > 9 for size, after in zip(sizes, groups[1:], strict=False))

    def test_of_no_window_is_no_run(self, lake: Lake, encoder_id: str) -> None:
        main(["--each_landed"])
        assert not Path(lake.root, "embeddings").exists()

    def test_leaves_a_window_alone_that_was_embedded_in_parts(self, lake: Lake, encoder_id: str) -> None:
        take_photo(lake, "a.jpg", 1)
        land(lake, FIRST, [listing("a", minute=30)])
        halves = list(FIRST.split(timedelta(hours=12)))
        for half in halves:
            main(bounds(half))
        main([*bounds(FIRST), "--each_landed"])
        assert list(Ledger(Embeddings(lake, encoder_id)).lines()) == halves

    @pytest.mark.parametrize("arguments", [[], ["--encoder", "pixels:2"]], ids=["nothing", "an encoder"])
    def test_is_not_meant_by_a_run_without_a_window(
        self, lake: Lake, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        land_marketplace(lake)
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert "--window_start and --window_end are required without --each_landed" in capsys.readouterr().err


class TestSlices:
    def broken_marketplace(self, lake: Lake) -> None:
        """Both windows, with rows that are no listings, few enough for the ratio in all, and late ones."""
        land_marketplace(lake)
        first = [listing(f"m{n:03d}", minute=n) for n in range(20)]
        bad = [asdict(listing(f"bad{n}")) | {"status": "on_hold"} for n in range(2)]
        land_unchecked(lake, FIRST, [*first, *bad])

    def whole(self, lake: Lake, encoder_id: str) -> tuple[Any, ...]:
        counts = [counts_of(lake, encoder_id, window) for window in (FIRST, SECOND)]
        dead = {letter.key for letter in DeadLetters(Embeddings(lake, encoder_id)).letters()}
        return state(lake, encoder_id), counts, dead

    def test_give_what_one_gives(self, lake: Lake, encoder_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken_marketplace(lake)
        # Slices of so few rows are no even samples.
        monkeypatch.setenv("LENS_MAX_DEAD_LETTER_RATIO", "0.3")
        main(bounds(SECOND))
        main(bounds(FIRST))
        expected = self.whole(lake, encoder_id)
        shutil.rmtree(f"{lake.root}/embeddings")
        monkeypatch.setattr(embed_listings, "_MOST_ROWS", 9)
        main(["--each_landed"])
        assert self.whole(lake, encoder_id) == expected
        # A commit each, after the one that made the table.
        assert version(lake, encoder_id) == 1 + 3 + 3

    def test_that_were_done_are_not_done_again(
        self, lake: Lake, encoder_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        land_marketplace(lake)
        monkeypatch.setattr(embed_listings, "_MOST_ROWS", 14)
        slice_of = embed_listings.slice_of

        def dying(config: embed_listings.Config, number: int) -> embed_listings.Config:
            if number == 1 and config.windows == (FIRST,):
                raise KeyboardInterrupt
            return slice_of(config, number)

        with monkeypatch.context() as killed:
            killed.setattr(embed_listings, "slice_of", dying)
            with pytest.raises(KeyboardInterrupt):
                main(["--each_landed"])
        # The newest window is complete, and a part of the other.
        newest, done = counts_of(lake, encoder_id, SECOND)["newest"], len(items_of(lake, encoder_id))
        assert newest < done < 39
        assert windows_not_embedded(lake, encoder_id) == [FIRST]
        main(["--each_landed"])
        assert counts_of(lake, encoder_id, FIRST)["unchanged"] == done - newest
        assert len(items_of(lake, encoder_id)) == 39

    def test_need_no_more_room_than_they_take(
        self, lake: Lake, encoder_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        land_marketplace(lake)
        monkeypatch.setattr(embed_listings, "_MOST_ROWS", 14)
        main(["--each_landed"])
        assert lake.folders(Embeddings(lake, encoder_id).staging) == []


class TestARunThatEndsEarly:
    def test_leaves_the_table_as_it_was(self, lake: Lake, encoder_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
        land_marketplace(lake)
        main(bounds(FIRST))
        before, at = state(lake, encoder_id), version(lake, encoder_id)

        def broken(*_: object) -> None:
            raise RuntimeError("the machine is on fire")

        with monkeypatch.context() as fire:
            fire.setattr(Encoder, "encode", broken)
            with pytest.raises(RuntimeError, match="on fire"):
                main(bounds(SECOND))
        assert (state(lake, encoder_id), version(lake, encoder_id)) == (before, at)
        assert line(lake, encoder_id, SECOND).state == "running"
        main(bounds(SECOND))
        assert counts_of(lake, encoder_id, SECOND)["embedded"] == 20

    def test_that_was_overtaken_commits_nothing(self, lake: Lake, encoder_id: str, photo_server: PhotoServer) -> None:
        photo_server.photos = {"a.jpg": photo(1)}
        land(lake, FIRST, [listing("a", image_uri=f"{photo_server.root}a.jpg")])
        answer = photo_server.hold("a.jpg")
        with ThreadPoolExecutor(1) as thread:
            run = thread.submit(main, bounds(FIRST))
            assert photo_server.waiting.wait(600)
            Ledger(Embeddings(lake, encoder_id)).begin([FIRST], "another attempt", NOW)
            answer.set()
            sentence = refused(run.result)
        assert sentence.startswith(f"window {FIRST} of {encoder_id} was taken over by attempt another attempt")
        assert version(lake, encoder_id) is None
        assert line(lake, encoder_id, FIRST).completed_by is None

    def test_that_was_overtaken_by_one_that_is_done_leaves_that_one_s_work(
        self, lake: Lake, encoder_id: str, photo_server: PhotoServer
    ) -> None:
        photo_server.photos = {"a.jpg": photo(1)}
        land(lake, FIRST, [listing("a", image_uri=f"{photo_server.root}a.jpg")])
        answer = photo_server.hold("a.jpg")
        with ThreadPoolExecutor(1) as thread:
            run = thread.submit(main, bounds(FIRST))
            assert photo_server.waiting.wait(600)
            del photo_server.held["a.jpg"]
            main(bounds(FIRST))
            done, at = line(lake, encoder_id, FIRST), version(lake, encoder_id)
            answer.set()
            assert "was taken over by attempt" in refused(run.result)
        assert (line(lake, encoder_id, FIRST), version(lake, encoder_id)) == (done, at)

    def test_twice_at_once_embeds_each_item_once(self, lake: Lake, encoder_id: str) -> None:
        land_marketplace(lake)

        def run() -> str | None:
            try:
                main(bounds(FIRST))
            except LensError as err:
                return refusal(err)
            return ""

        with ThreadPoolExecutor(2) as threads:
            ends = [future.result() for future in [threads.submit(run) for _ in range(2)]]
        # At least the one that began later came to its end.
        assert "" in ends
        assert all(end is not None and (not end or "was taken over" in end) for end in ends), ends
        assert len(items_of(lake, encoder_id)) == 19
        assert windows_not_embedded(lake, encoder_id) == [SECOND]


def test_a_lake_that_is_full_is_left_as_it_was(lake: Lake, encoder_id: str) -> None:
    land_marketplace(lake)
    main(bounds(FIRST))
    before, at = state(lake, encoder_id), version(lake, encoder_id)
    # No file of this process may grow beyond 2 KB: the system refuses its writes as a full disk's.
    full = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)); "
    run = f"from beam_jobs import embed_listings; embed_listings.main({bounds(SECOND)!r})"
    process = subprocess.run(
        [sys.executable, "-c", full + run],
        check=False,
        cwd=CHECKOUT,
        # Python 3.11 does not see that a write was cut short: modules cached by this process would be broken for all.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "File too large" in process.stderr
    assert (state(lake, encoder_id), version(lake, encoder_id)) == (before, at)
    assert line(lake, encoder_id, SECOND).completed_by is None
    main(bounds(SECOND))
    assert counts_of(lake, encoder_id, SECOND)["embedded"] == 20


class TestAKilledRun:
    """A real process that is killed in the middle; where, the test decides by what the process waits for."""

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "beam_jobs.embed_listings", *arguments],
            cwd=CHECKOUT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def kill(self, process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(600)
        assert process.stderr is not None
        process.stderr.close()

    def land(self, lake: Lake, photo_server: PhotoServer) -> None:
        photo_server.photos = {f"m{n}.jpg": photo(n) for n in range(10)}
        land(lake, FIRST, [listing(f"m{n}", image_uri=f"{photo_server.root}m{n}.jpg") for n in range(10)])

    def test_before_its_commit_left_nothing(self, lake: Lake, encoder_id: str, photo_server: PhotoServer) -> None:
        self.land(lake, photo_server)
        photo_server.hold("m7.jpg")
        process = self.start(bounds(FIRST))
        try:
            assert photo_server.waiting.wait(120)
        finally:
            self.kill(process)
        photo_server.held.pop("m7.jpg").set()
        assert version(lake, encoder_id) is None
        assert line(lake, encoder_id, FIRST).state == "running"
        assert windows_not_embedded(lake, encoder_id) == [FIRST]
        main(["--each_landed"])
        assert counts_of(lake, encoder_id, FIRST)["embedded"] == 10
        assert len(items_of(lake, encoder_id)) == 10
        assert windows_not_embedded(lake, encoder_id) == []

    def test_after_its_commit_left_all_of_it_and_the_next_says_so(
        self, lake: Lake, encoder_id: str, photo_server: PhotoServer
    ) -> None:
        self.land(lake, photo_server)
        answer = photo_server.hold("m7.jpg")
        process = self.start(bounds(FIRST))
        try:
            assert photo_server.waiting.wait(120)
            # It has begun, and will merge; but it cannot say in the ledger that it is done.
            with FileLock(f"{Embeddings(lake, encoder_id).windows.path}.lock"):
                answer.set()
                assert process.stderr is not None
                assert any("10 items are new" in said for said in process.stderr)
                self.kill(process)
        finally:
            self.kill(process)
        committed = version(lake, encoder_id)
        assert len(items_of(lake, encoder_id)) == 10
        assert windows_not_embedded(lake, encoder_id) == [FIRST]
        photo_server.away = True
        main(["--each_landed"])
        # Nothing was left to do but to say so.
        assert counts_of(lake, encoder_id, FIRST) == {"read": 10, "newest": 10, "unchanged": 10}
        assert version(lake, encoder_id) == committed
        assert windows_not_embedded(lake, encoder_id) == []


class TestAnEncoder:
    def test_of_mlflow_is_the_one_that_was_registered(
        self, lake: Lake, mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LENS_MLFLOW_URL", mlflow_url)
        trained = save_untrained_siglip(tmp_path / "trained", seed=3)
        trained_id = identify(str(trained))
        registry = Registry.connect(mlflow_url)
        registered = registry.register_encoder(
            registry.start_finetuning("training", {}, key=str(tmp_path)),
            trained,
            encoder_id=trained_id,
            source=str(trained),
            parent_id="parent-12345678",
            parent_source="google/parent",
            pairs_fingerprint="0123456789abcdef",
            description="better than its parent",
        )
        land_marketplace(lake)
        source = f"models:/listing-encoder/{registered}"
        main(["--each_landed", "--encoder", source])
        assert windows_not_embedded(lake, trained_id) == []
        parameters = line(lake, trained_id, FIRST).parameters
        assert (parameters["encoder_source"], parameters["encoder_id"]) == (str(trained), trained_id)
        fit_projection.main(["--name", "trained", "--encoder", source])
        card = load_fit(lake, "trained").card
        assert (card.encoder_source, card.encoder_id) == (str(trained), trained_id)

    def test_has_a_table_of_its_own(self, lake: Lake, encoder_id: str) -> None:
        land_marketplace(lake)
        main(bounds(FIRST))
        main([*bounds(FIRST), "--encoder", "pixels:4"])
        found = items_of(lake, "pixels-4")
        assert found.keys() == items_of(lake, encoder_id).keys()
        assert {len(row["embedding"]) for row in found.values() if row["embedding"] is not None} == {48}

    def test_keeps_its_numbers_as_they_were_kept_first(
        self, lake: Lake, encoder_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        land_marketplace(lake)
        monkeypatch.setenv("LENS_EMBEDDING_DTYPE", "float32")
        main(bounds(FIRST))
        monkeypatch.setenv("LENS_EMBEDDING_DTYPE", "float16")
        main(bounds(SECOND))
        table = Embeddings(lake, encoder_id).items.open()
        assert str(table.schema.field("embedding").type.value_type) == "float"
        assert len(items_of(lake, encoder_id)) == 39

    def test_that_is_unknown_is_named(self, lake: Lake) -> None:
        land(lake, FIRST, [])
        with pytest.raises(LensError, match="nobody/nothing"):
            main([*bounds(FIRST), "--encoder", "nobody/nothing"])


def test_a_price_change_needs_no_model_but_its_photo_s_bytes(
    lake: Lake, encoder_id: str, photo_server: PhotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo_server.photos = {f"m{n}.jpg": photo(n) for n in range(10)}

    def versions(window: Window, price: int) -> list[Listing]:
        return [listing(f"m{n}", window, image_uri=f"{photo_server.root}m{n}.jpg", price=price) for n in range(10)]

    land(lake, FIRST, versions(FIRST, 1000))
    main(bounds(FIRST))
    land(lake, SECOND, versions(SECOND, 900))

    def unused(*_: object) -> None:
        raise AssertionError("a photo was encoded")

    monkeypatch.setattr(Encoder, "encode", unused)
    main(bounds(SECOND))
    assert counts_of(lake, encoder_id, SECOND) == {"read": 10, "newest": 10, "reused": 10}
    assert {row["price"] for row in items_of(lake, encoder_id).values()} == {900}
