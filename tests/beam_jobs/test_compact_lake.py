"""Compacting: fewer files and the same rows, nothing that changes counts as changed, and what died is swept up.

It runs beside everything else, every night: what it moves must neither be embedded nor loaded again, and what it removes
nobody may still be reading or writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from tiny import FIRST, NOW, bounds, items_of, land, listing, put_items, take_photo

from beam_jobs import embed_listings
from beam_jobs.compact_lake import main, sweep
from listing_lens.errors import LensError
from listing_lens.lake.dead_letters import DeadLetters
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.ledger import Ledger
from listing_lens.lake.records import Status
from listing_lens.lake.searches import search_log
from listing_lens.lake.tables import changed_since
from listing_lens.lake.windows import Lake


def vectors() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    while True:
        yield rng.standard_normal(8).astype(np.float32)


@pytest.fixture
def many(lake: Lake) -> Embeddings:
    """A table of twelve merges, the last of which replaces a row of the first."""
    made, numbers = [listing(f"m{n:02d}", minute=n) for n in range(12)], vectors()
    for one in made:
        put_items(lake, "small-12345678", [one], [next(numbers)])
    put_items(lake, "small-12345678", [listing("m00", minute=59, price=5)], [next(numbers)])
    return Embeddings(lake, "small-12345678")


def files(embeddings: Embeddings) -> int:
    return len(embeddings.items.open().get_fragments())


def test_fewer_files_hold_the_same(lake: Lake, many: Embeddings) -> None:
    before, at = items_of(lake, many.encoder_id), many.require()
    assert files(many) > 10
    main([])
    assert files(many) == 1
    after = items_of(lake, many.encoder_id)
    assert after.keys() == before.keys()
    for item, row in after.items():
        np.testing.assert_array_equal(row.pop("embedding"), before[item].pop("embedding"))
        assert row == before[item]
    # A reader of the version before is not disturbed.
    assert many.count(at) == 12


def test_items_that_were_removed_long_ago_are_forgotten(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    now, some = datetime.now(UTC), next(vectors())
    long_ago, lately = now - timedelta(days=31), now - timedelta(days=29)
    put_items(
        lake,
        "small-12345678",
        [
            listing("sold long ago", status=Status.SOLD, updated_at=long_ago),
            listing("sold lately", status=Status.SOLD, updated_at=lately),
            listing("on sale for long", updated_at=long_ago),
        ],
        [None, None, some],
    )
    monkeypatch.setenv("LENS_LAKE_REMOVED_DAYS", "30")
    main([])
    assert items_of(lake, "small-12345678").keys() == {"sold lately", "on sale for long"}


def test_what_moved_has_not_changed(lake: Lake, many: Embeddings) -> None:
    at = many.require()
    replaced = many.count(at, changed_since(at - 1))
    assert replaced == 1
    main([])
    assert many.require() > at
    assert many.count(many.require(), changed_since(at)) == 0
    assert many.count(many.require(), changed_since(at - 1)) == 1


def test_what_is_embedded_after_it_counts_as_ever(lake: Lake, encoder_id: str) -> None:
    for name in "abc":
        take_photo(lake, f"{name}.jpg", ord(name))
        land(lake, FIRST, [listing(name)])
        embed_listings.main(bounds(FIRST))
    at = Embeddings(lake, encoder_id).require()
    main([])
    assert files(Embeddings(lake, encoder_id)) == 1
    embed_listings.main(bounds(FIRST))
    assert dict(Ledger(Embeddings(lake, encoder_id)).lines()[FIRST].counts)["unchanged"] == 1
    embeddings = Embeddings(lake, encoder_id)
    assert embeddings.count(embeddings.require(), changed_since(at)) == 0


def test_the_ledger_and_the_dead_letters_are_compacted_too(lake: Lake, encoder_id: str) -> None:
    for window in FIRST.split(timedelta(hours=8)):
        land(lake, window, [listing(f"gone {window.start.hour}", window)])
        embed_listings.main(bounds(window))
    embeddings = Embeddings(lake, encoder_id)
    lines = Ledger(embeddings).lines()
    letters = sorted(DeadLetters(embeddings).letters(), key=lambda letter: letter.key)
    main([])
    assert [len(table.open().get_fragments()) for table in (embeddings.windows, embeddings.dead_letters)] == [1, 1]
    assert Ledger(embeddings).lines() == lines
    assert sorted(DeadLetters(embeddings).letters(), key=lambda letter: letter.key) == letters
    assert (len(lines), len(letters)) == (3, 3)


def test_versions_that_are_too_old_are_forgotten(lake: Lake, many: Embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_LAKE_RETENTION_DAYS", "1e-9")
    at = many.require()
    before = lake.size(many.items.path)
    main([])
    with pytest.raises(LensError, match=rf"of version {at}, or it is no longer kept \(LENS_LAKE_RETENTION_DAYS\)"):
        many.items.open(at)
    assert lake.size(many.items.path) < before
    assert len(items_of(lake, many.encoder_id)) == 12


def test_an_encoder_narrows_it(lake: Lake, many: Embeddings) -> None:
    numbers = vectors()
    for n in range(3):
        put_items(lake, "pixels-4", [listing(f"m{n}")], [next(numbers)])
    before = files(many)
    main(["--encoder", "pixels:4"])
    assert files(Embeddings(lake, "pixels-4")) == 1
    assert files(many) == before


def test_a_lake_without_embeddings_has_nothing_to_compact(lake: Lake) -> None:
    main([])
    assert lake.folders(f"{lake.root}/embeddings") == []


def test_what_runs_that_died_had_staged_is_removed_when_none_can_be_running(lake: Lake, many: Embeddings) -> None:
    attempts = {days: Lake.new_attempt(NOW - timedelta(days=days)) for days in (0, 1, 3, 400)}
    for attempt in attempts.values():
        lake.write_bytes(f"{many.staging}/{attempt}/0/part.arrow", b"x")
    lake.write_bytes(f"{many.staging}/somebody-else-s/file", b"x")
    assert sweep(many, NOW) == 2
    assert lake.folders(many.staging) == sorted([attempts[1], attempts[0], "somebody-else-s"])
    assert sweep(many, NOW) == 0


def test_it_sweeps_by_the_time_it_is(lake: Lake, many: Embeddings) -> None:
    old, young = (Lake.new_attempt(datetime.now(UTC) - timedelta(days=days)) for days in (3, 1))
    for attempt in (old, young):
        lake.write_bytes(f"{many.staging}/{attempt}/0/part.arrow", b"x")
    main([])
    assert lake.folders(many.staging) == [young]


@pytest.mark.parametrize(("days", "kept"), [("2", [0, 1, 2]), ("1", [0, 1]), ("0", [])])
def test_searches_are_forgotten_when_it_is_time(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, days: str, kept: list[int]
) -> None:
    log, now = search_log(lake), datetime.now(UTC)
    times = [now - timedelta(days=days) for days in range(4)]
    for time in times:
        log.append([{"at": time.isoformat()}], time, "host.1")
    monkeypatch.setenv("LENS_SEARCH_LOG_DAYS", days)
    main([])
    assert log.days() == sorted(times[age].date() for age in kept)
