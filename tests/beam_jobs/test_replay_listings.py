"""The log of listings replayed into an index on a real node: whatever was told before the index was there is in it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rehearsal import passed
from small_index import IDS, Small
from tiny import Indexed, image_root, listing, take_photo

from beam_jobs import load_index
from beam_jobs.launcher import refusal
from beam_jobs.replay_listings import main
from listing_lens.errors import LensError
from listing_lens.indexing.events import entry_of
from listing_lens.indexing.listing_log import ListingLog
from listing_lens.indexing.set_aside import SET_ASIDE
from listing_lens.lake.log import Log
from listing_lens.lake.records import Listing, Status
from listing_lens.lake.windows import Lake
from listing_lens.search.builds import Builds
from listing_lens.search.index import Index


@pytest.fixture
def later(market: Small) -> Iterator[Index]:
    """An index that is made when much has been told."""
    index = market.search_index.create(market.live.card, "later")
    yield index
    market.search_index.client.indices.delete(index=index.name)


@pytest.fixture(autouse=True)
def forgotten(request: pytest.FixtureRequest) -> None:
    """Each test begins with an empty log."""
    if "market" in request.fixturenames:
        lake = Lake(request.getfixturevalue("market").settings.lake)
        lake.remove_folder(f"{lake.root}/logs")


def bag(market: Small, item_id: str, seconds: int = 0, **changes: object) -> Listing:
    """A listing that changed so many seconds ago, with the photo of another item."""
    changed = datetime.now(UTC) - timedelta(seconds=seconds)
    return listing(item_id, updated_at=changed, **{"image_uri": str(market.photo("m001")), **changes})  # type: ignore[arg-type]


def tell(lake: Lake, listings: Sequence[Listing]) -> None:
    now = datetime.now(UTC)
    ListingLog.of(lake).log.append([entry_of(one, now) for one in listings], now, "test")


def lake_of(market: Small) -> Lake:
    return Lake(market.settings.lake)


def counted(caplog: pytest.LogCaptureFixture) -> str:
    return [message for message in caplog.messages if message.startswith("replayed into")][-1].partition(": ")[2]


def test_the_newest_of_each_item_is_written_once(market: Small, later: Index, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    older, newer = bag(market, "a", 20), bag(market, "a", 10, price=7)
    sold = bag(market, "b", 5, status=Status.SOLD, image_uri="")
    tell(lake_of(market), [newer, sold])
    tell(lake_of(market), [older, newer])
    main(["--index", later.name])
    assert counted(caplog) == str({"read": 4, "newest": 2, "written": 2, "held": 0, "unusable": 0})
    held = market.search_index.versions(later.name, ["a", "b"])
    assert held == {"a": (newer.version, "on_sale"), "b": (sold.version, "sold")}
    market.search_index.refresh(later.name)
    assert market.search_index.with_vector(later.name, ["a", "b"]) == {"a"}
    # No other index has it.
    assert not market.search_index.versions(market.live.name, ["a", "b"])
    main(["--index", later.name])
    assert counted(caplog) == str({"read": 4, "newest": 2, "written": 0, "held": 2, "unusable": 0})


def test_a_newer_version_that_the_index_holds_stays(market: Small, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = market.search_index.versions(market.other.name, IDS[:1])
    [(version, _)] = before.values()
    old = listing(IDS[0], minute=-1, image_uri=str(market.photo("m001")))
    assert old.version < version
    tell(lake_of(market), [old])
    main(["--index", market.other.name])
    assert counted(caplog) == str({"read": 1, "newest": 1, "written": 0, "held": 1, "unusable": 0})
    assert market.search_index.versions(market.other.name, IDS[:1]) == before


def test_what_the_index_cannot_hold_is_set_aside_and_counted(
    market: Small, later: Index, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gone = [bag(market, f"gone{n}", image_uri=f"{image_root(lake_of(market))}/gone.jpg") for n in range(11)]
    tell(lake_of(market), [bag(market, "sound"), *gone[:10]])
    main(["--index", later.name])
    assert counted(caplog) == str({"read": 11, "newest": 11, "written": 1, "held": 0, "unusable": 10})
    log = Log(lake_of(market), SET_ASIDE)
    now = datetime.now(UTC)
    entries = [
        entry for path in log.files(now - timedelta(days=1), now + timedelta(days=1)) for entry in log.read(path)
    ]
    assert sorted(entry["listing"]["item_id"] for entry in entries) == sorted(one.item_id for one in gone[:10])
    assert {entry["reason"] for entry in entries} == {"its photo cannot be used: cannot be read: no such file"}
    # One more is too many.
    tell(lake_of(market), gone[10:])
    with pytest.raises(Exception, match="LENS_MAX_DEAD_LETTER_RATIO") as failed:
        main(["--index", later.name])
    assert (refusal(failed.value) or "").startswith(f"index {later.name} cannot hold 11 of 12 listings of the log")


def test_an_index_that_cannot_be_written_fails_the_job(market: Small, later: Index) -> None:
    tell(lake_of(market), [bag(market, "a")])
    market.search_index.client.indices.put_settings(index=later.name, settings={"index.blocks.write": True})
    with pytest.raises(Exception, match="block") as failed:
        main(["--index", later.name])
    assert "remove the block" in (refusal(failed.value) or "")
    with pytest.raises(LensError, match="there is no index 'nothing'"):
        main(["--index", "nothing"])


def test_a_replay_of_nothing_loads_no_model(market: Small, later: Index) -> None:
    code = (
        "import sys; from beam_jobs.replay_listings import main; "
        f"main(['--index', {later.name!r}]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_was_told_before_a_rebuild_is_in_the_index_that_goes_live(indexed: Indexed) -> None:
    """Its window has not landed, so no load can bring it: and whoever told of it has reached the indexes of that time alone."""
    search_index, builds = indexed.search_index, Builds(indexed.search_index)
    take_photo(indexed.lake, "new.jpg", 77)
    now = datetime.now(UTC)
    # Photos that came with a listing are where the service keeps them: in this folder.
    told = replace(listing("new", image_uri=f"{image_root(indexed.lake)}/new.jpg"), updated_at=now)
    tell(indexed.lake, [told])
    build = builds.begin(indexed.index.card, owner="a test", because="a test", afresh=True)
    load_index.main(["--index", build.index])
    search_index.finish_load(build.index)
    assert not search_index.versions(build.index, ["new"])
    builds.verified(passed(search_index.get(build.index)))
    main(["--index", build.index])
    search_index.swap(build.index, epoch=build.epoch)
    live = search_index.require_live()
    assert live.name == build.index
    search_index.refresh(live.name)
    [(version, vector)] = search_index.vectors(live.name, ["new"]).values()
    assert version == told.version
    assert vector is not None
    assert search_index.search(live, vector, 1)[0].item_id == "new"
