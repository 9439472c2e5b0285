"""`lens compare` on landed sessions: its table, what is left out, and what it refuses."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.numpy import load_file
from tiny import FIRST, SECOND, image_root, land, land_sessions, listing, take_photo

from listing_lens.lake.records import Query, Session, Status
from listing_lens.lake.searches import FROM_LOG
from listing_lens.lake.windows import Lake
from listing_lens.settings import load_settings

if TYPE_CHECKING:
    from tests.listing_lens.cli.conftest import Lens, Refusal

SHOWN = tuple(f"m{n:03d}" for n in range(8))


def search(number: int, *, shown: tuple[str, ...] = SHOWN, photo: str = "", **query: Any) -> Session:
    """A search by the photo of an item, which is tapped."""
    wanted = shown[number % len(shown)]
    asked = Query((photo or f"{wanted}.jpg",), **query)
    return Session(
        f"s{number}", FIRST.start + timedelta(hours=1), asked, shown, tuple(item == wanted for item in shown)
    )


@pytest.fixture
def lake() -> Lake:
    """Eight items, and a search for each."""
    lake = Lake(load_settings().lake)
    land(lake, FIRST, [listing(item, minute=n) for n, item in enumerate(SHOWN)])
    for n, item in enumerate(SHOWN):
        take_photo(lake, f"{item}.jpg", seed=n)
    land_sessions(lake, FIRST, [search(n) for n in range(8)])
    return lake


def compared(lens: Lens, *arguments: object) -> dict[str, Any]:
    result = lens("compare", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_ranks_what_was_shown_by_each_encoder_and_order(lens: Lens, lake: Lake) -> None:
    rows = compared(lens, "pixels:4", "pixels:2", "--projection", "3")["rows"]
    assert [(row["role"], row["encoder_id"], row["dims"]) for row in rows] == [
        ("compared", "pixels-4", 48),
        ("compared", "pixels-4", 3),
        ("compared", "pixels-2", 12),
        ("compared", "pixels-2", 3),
        ("random", None, None),
        ("logged", None, None),
    ]
    # The query is the item's own photo.
    assert rows[0]["unseen"]["metrics"]["ndcg@5"] == {"mean": 1, "low": 1, "high": 1}
    assert (rows[0]["unseen"]["sessions"], rows[0]["unseen"]["clusters"]) == (8, 8)
    assert rows[4]["unseen"]["metrics"]["precision@1"]["mean"] == pytest.approx(1 / 8)
    # One search each was tapped at each of the eight positions.
    assert rows[5]["unseen"]["metrics"]["recall@5"]["mean"] == pytest.approx(5 / 8)
    assert rows[0]["cost"]["parameters"] == 0


def test_prints_tables_that_fit_the_terminal(lens: Lens, lake: Lake) -> None:
    result = lens("compare", "pixels:4", "pixels:2")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    for part in ("8 sessions, 8 products", "pixels-4", "random order", "logged order", "1.000–1.000", "GFLOP"):
        assert part in result.stdout


def test_samples_sessions_by_one_photo(lens: Lens, lake: Lake) -> None:
    others = [search(20, text="red"), Session("untapped", FIRST.start, Query(("m000.jpg",)), SHOWN, (False,) * 8)]
    land_sessions(lake, FIRST, [*(search(n) for n in range(8)), *others])
    assert compared(lens, "pixels:4")["rows"][0]["unseen"]["sessions"] == 8
    fewer = compared(lens, "pixels:4", "--sessions", "3")
    assert fewer == compared(lens, "pixels:2", "--sessions", "3") | {"rows": fewer["rows"]}
    assert fewer["rows"][0]["unseen"]["sessions"] == 3


def test_says_what_is_left_out(lens: Lens, lake: Lake) -> None:
    lake.write_bytes(f"{image_root(lake)}/broken.jpg", b"no image")
    left_out = [search(9, photo="broken.jpg"), search(10, photo="gone.jpg"), search(11, shown=(*SHOWN, "unknown"))]
    land_sessions(lake, FIRST, [*(search(n) for n in range(8)), *left_out])
    said = lens("compare", "pixels:4").stdout.splitlines()[-2:]
    assert said == [
        "1 of the sampled sessions are left out: with an item that has not landed",
        "2 of the sampled sessions are left out: with a photo that cannot be read",
    ]


def test_looks_at_items_as_they_were_searchable_last_before_the_sessions_window_ended(
    lens: Lens, refusal: Refusal, lake: Lake
) -> None:
    land_sessions(lake, SECOND, [])
    gone = listing("m002", SECOND, status=Status.DELETED, image_uri="removed.jpg")
    land(lake, SECOND, [gone, listing("m003", SECOND, image_uri="not there.jpg")])
    assert compared(lens, "pixels:4", "--end", FIRST.end.isoformat())["rows"][0]["unseen"]["sessions"] == 8
    said = refusal("compare", "pixels:4")
    assert said == (
        "none of the 8 sampled sessions can be used: 8 with a photo that cannot be read; "
        "choose another window, or land its listings"
    )
    take_photo(lake, "not there.jpg", seed=50)
    assert compared(lens, "pixels:4")["rows"][0]["unseen"]["sessions"] == 8


def test_embeds_again_only_what_is_new(lens: Lens, lake: Lake) -> None:
    kept = load_settings().home / "comparison" / "pixels-4"
    compared(lens, "pixels:4")
    before = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    rows = compared(lens, "pixels:4", "pixels:2")["rows"]
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == before
    assert rows[0]["encoder_id"] == "pixels-4"


def test_keeps_nothing_of_photos_that_the_search_service_forgets(lens: Lens, lake: Lake) -> None:
    take_photo(lake, "buyer.jpg", seed=99)
    land_sessions(lake, FIRST, [search(n, photo="buyer.jpg") for n in range(8)], **FROM_LOG)
    compared(lens, "pixels:4")
    kept = list((load_settings().home / "comparison" / "pixels-4").iterdir())
    # The items' photos alone, which were embedded together.
    assert [len(load_file(file)["photos"]) for file in kept] == [8]


class TestRefusals:
    def test_an_encoder_that_cannot_be_loaded_is_named_and_the_others_are_compared(
        self, lens: Lens, lake: Lake, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        result = lens("compare", "pixels:4", tmp_path / "empty")
        assert result.exit_code == 1
        assert "pixels-4" in result.stdout
        assert result.stderr.splitlines()[-1].endswith(
            "the folder holds no safetensors weights; save it with save_pretrained()"
        )

    def test_no_encoder_that_can_be_loaded(self, refusal: Refusal, lake: Lake) -> None:
        assert refusal("compare", "pixels:no").startswith("encoder 'pixels:no': write the thumbnails' side")

    def test_no_sessions(self, refusal: Refusal) -> None:
        assert "holds no sessions: run `lens lake land-sessions`" in refusal("compare", "pixels:4")

    def test_sessions_without_a_tap(self, refusal: Refusal, lake: Lake) -> None:
        land_sessions(lake, FIRST, [])
        assert "is by one photo and has a tap" in refusal("compare", "pixels:4")

    def test_sessions_of_one_product(self, refusal: Refusal, lake: Lake) -> None:
        land_sessions(lake, FIRST, [search(0), search(8)])
        assert refusal("compare", "pixels:4").startswith("all 2 unseen sessions are of one product")
