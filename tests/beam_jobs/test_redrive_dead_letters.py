"""Re-driving: what failed for a passing reason is tried again after its pause, and nothing else is.

An image server that is away for an hour must cost its listings an hour, not their place in the index; one that is gone for
good must not be asked for ever. Letters are written with the time of their last try, so that no test waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny import FIRST, SECOND, bounds, items_of, land, land_unchecked, listing, photo, put_items, take_photo

from beam_jobs import embed_listings
from beam_jobs.redrive_dead_letters import main
from listing_lens.lake.dead_letters import MOST_ATTEMPTS, DeadLetters, Letter
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.records import Listing, Status
from listing_lens.lake.windows import Lake

if TYPE_CHECKING:
    from tests.beam_jobs.conftest import PhotoServer

LONG_AGO = timedelta(days=30)


@pytest.fixture
def dead(lake: Lake, encoder_id: str) -> DeadLetters:
    return DeadLetters(Embeddings(lake, encoder_id))


def letter(
    made: Listing, *, ago: timedelta = LONG_AGO, attempts: int = 1, transient: bool = True, stage: str = "fetch"
) -> Letter:
    """A letter whose last try was so long ago."""
    failed = datetime.now(UTC) - ago
    return Letter.of_listing(made, FIRST, stage, "it was away", transient=transient, attempts=attempts, now=failed)


def at(server: PhotoServer, *names: str) -> Sequence[Listing]:
    """Listings whose photos the server has."""
    for name in names:
        server.photos[f"{name}.jpg"] = photo(ord(name))
    return [listing(name, image_uri=f"{server.root}{name}.jpg") for name in names]


def kept(dead: DeadLetters) -> dict[str, int]:
    """The tries of each letter that is kept."""
    return {one.key: one.attempts for one in dead.letters()}


def test_what_a_run_set_aside_is_embedded_once_the_server_is_back(
    lake: Lake, encoder_id: str, dead: DeadLetters, photo_server: PhotoServer
) -> None:
    [made] = at(photo_server, "a")
    land(lake, FIRST, [made])
    photo_server.away = True
    embed_listings.main(bounds(FIRST))
    [found] = dead.letters()
    # It was read back from JSON, and is the same version of the listing all the same.
    assert (found.listing, found.version) == (made, made.version)
    photo_server.away = False
    photo_server.asked.clear()
    main([])
    assert not photo_server.asked, "it is not due yet"
    dead.add([replace(found, failed_at=found.failed_at - timedelta(minutes=16))])
    main([])
    row = items_of(lake, encoder_id)["a"]
    assert row["embedding"] is not None
    assert (row["version"], row["window"]) == (made.version, FIRST.name)
    assert kept(dead) == {}
    # The window's own run finds nothing to do.
    photo_server.away = True
    embed_listings.main(bounds(FIRST))
    assert items_of(lake, encoder_id)["a"]["version"] == made.version
    assert kept(dead) == {}


def test_what_fails_again_is_kept_with_one_more_try(
    lake: Lake, encoder_id: str, dead: DeadLetters, photo_server: PhotoServer
) -> None:
    dead.add(map(letter, at(photo_server, "a", "b")))
    del photo_server.photos["b.jpg"]
    began = datetime.now(UTC)
    main([])
    assert set(items_of(lake, encoder_id)) == {"a"}
    [again] = dead.letters()
    assert (again.key, again.attempts, again.reason, again.transient) == ("b", 2, "the server answered 404", False)
    assert again.failed_at >= began


@pytest.mark.parametrize(
    ("attempts", "minutes", "due"),
    [(1, 14, False), (1, 16, True), (2, 29, False), (2, 31, True), (5, 239, False), (5, 241, True)],
)
def test_the_pause_doubles_with_each_try(
    lake: Lake, dead: DeadLetters, photo_server: PhotoServer, attempts: int, minutes: int, due: bool
) -> None:
    dead.add(letter(made, attempts=attempts, ago=timedelta(minutes=minutes)) for made in at(photo_server, "a"))
    main([])
    assert photo_server.asked["a.jpg"] == due
    assert kept(dead) == ({} if due else {"a": attempts})


@pytest.mark.parametrize(
    "waiting",
    [{"transient": False}, {"attempts": MOST_ATTEMPTS}, {"ago": timedelta()}],
    ids=["for good", "too often", "too lately"],
)
def test_what_is_not_due_is_tried_when_all_is(
    lake: Lake, encoder_id: str, dead: DeadLetters, photo_server: PhotoServer, waiting: dict[str, object]
) -> None:
    dead.add(letter(made, **waiting) for made in at(photo_server, "a"))  # type: ignore[arg-type]
    before = list(dead.letters())
    main([])
    assert list(dead.letters()) == before
    main(["--all"])
    assert kept(dead) == {}
    assert set(items_of(lake, encoder_id)) == {"a"}


def test_a_letter_with_a_newer_version_by_now_goes_without_a_try(
    lake: Lake, encoder_id: str, dead: DeadLetters, photo_server: PhotoServer
) -> None:
    older, same = at(photo_server, "a", "b")
    newer = replace(older, updated_at=older.updated_at + timedelta(hours=1), price=5)
    vector = np.eye(1, 192, dtype=np.float32)[0]
    put_items(lake, encoder_id, [newer, same], [vector, vector])
    dead.add(map(letter, [older, same]))
    main([])
    assert not photo_server.asked
    assert kept(dead) == {}
    assert {item: row["price"] for item, row in items_of(lake, encoder_id).items()} == {"a": 5, "b": 1200}


def test_a_letter_of_a_listing_that_is_sold_by_now_goes(
    lake: Lake, encoder_id: str, dead: DeadLetters, photo_server: PhotoServer
) -> None:
    [made] = at(photo_server, "a")
    dead.add([letter(made)])
    land(lake, SECOND, [listing("a", SECOND, status=Status.SOLD)])
    embed_listings.main(bounds(SECOND))
    assert kept(dead) == {}


def test_a_row_that_is_no_listing_is_never_tried(lake: Lake, encoder_id: str, dead: DeadLetters) -> None:
    take_photo(lake, "a.jpg", 1)
    land_unchecked(lake, FIRST, [listing("a"), {"item_id": "bad", "status": "on_hold"}])
    embed_listings.main(bounds(FIRST))
    before = list(dead.letters())
    assert [one.item_id for one in before] == ["bad"]
    main(["--all"])
    assert list(dead.letters()) == before


def test_photos_below_the_root_of_their_window_may_be_read(lake: Lake, encoder_id: str, dead: DeadLetters) -> None:
    land(lake, FIRST, [listing("a", minute=5)])
    embed_listings.main(bounds(FIRST))
    assert [one.reason for one in dead.letters()] == ["cannot be read: no such file"]
    take_photo(lake, "a.jpg", 1)
    main(["--all"])
    assert set(items_of(lake, encoder_id)) == {"a"}


def test_another_encoder_s_letters_are_left_alone(
    lake: Lake, encoder_id: str, dead: DeadLetters, photo_server: PhotoServer
) -> None:
    made = at(photo_server, "a")
    other = DeadLetters(Embeddings(lake, "pixels-4"))
    for letters in (dead, other):
        letters.add(map(letter, made))
    main(["--encoder", "pixels:4"])
    assert set(items_of(lake, "pixels-4")) == {"a"}
    assert (kept(dead), kept(other)) == ({"a": 1}, {})


def test_without_a_letter_nothing_is_made(lake: Lake, encoder_id: str) -> None:
    main(["--all"])
    assert lake.folders(f"{lake.root}/embeddings") == []


def test_nothing_that_was_staged_stays(
    lake: Lake, encoder_id: str, dead: DeadLetters, photo_server: PhotoServer
) -> None:
    dead.add(map(letter, at(photo_server, "a")))
    main([])
    assert lake.folders(Embeddings(lake, encoder_id).staging) == []
