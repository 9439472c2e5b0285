"""Events on their way into real indexes: in any order, any number of times, with whatever else a queue may bring."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_index import Small

from beam_jobs.index_listings import Folder, Subscription, configure, main, run
from beam_jobs.launcher import refusal
from listing_lens.errors import LensError
from listing_lens.indexing.listing_log import ListingLog
from listing_lens.indexing.set_aside import SET_ASIDE
from listing_lens.lake.log import Log
from listing_lens.lake.windows import Lake
from listing_lens.process_group import end_group

NOW = datetime.now(UTC).replace(microsecond=0)
_SUBSCRIPTION = "projects/my-project/subscriptions/listings"
# A version is a time in microseconds, times this, and what decides between those of one time.
_PER_MICROSECOND = 2048


def event(market: Small, item_id: str, seconds_ago: int = 0, **changes: Any) -> dict[str, Any]:
    """A bag, as it was so many seconds ago, with the photo of another item."""
    return {
        "item_id": item_id,
        "title": "A bag",
        "category": ["A", "C"],
        "price": 900,
        "image_uri": str(market.photo("m001")),
        "updated_at": (NOW - timedelta(seconds=seconds_ago)).isoformat(),
        **changes,
    }


def put(folder: Path, events: Iterable[dict[str, Any] | bytes]) -> None:
    """Put a file of events into a folder, whole."""
    folder.mkdir(exist_ok=True)
    path = folder / uuid4().hex
    path.write_bytes(b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in events))
    path.rename(path.with_suffix(".jsonl"))


def held(market: Small, item_ids: Sequence[str]) -> list[dict[str, tuple[int, str]]]:
    """The times and statuses of items in each of the indexes."""
    return [
        {
            item_id: (version // _PER_MICROSECOND, status)
            for item_id, (version, status) in market.search_index.versions(index.name, item_ids).items()
        }
        for index in (market.live, market.other)
    ]


def as_held(told: dict[str, Any]) -> tuple[int, str]:
    moment = datetime.fromisoformat(told["updated_at"])
    return int(moment.timestamp()) * 1_000_000, told.get("status", "on_sale")


def set_aside(market: Small) -> list[dict[str, Any]]:
    log = Log(Lake(market.settings.lake), SET_ASIDE)
    files = log.files(NOW - timedelta(days=1), NOW + timedelta(days=1))
    return [entry for path in files for entry in log.read(path)]


@pytest.fixture(autouse=True)
def forgotten(market: Small) -> None:
    """Each test begins with an empty log."""
    lake = Lake(market.settings.lake)
    lake.remove_folder(f"{lake.root}/logs")


class TestFolder:
    def test_of_events_is_kept_in_the_log_and_indexed_everywhere(self, market: Small, tmp_path: Path) -> None:
        told = [event(market, "a"), event(market, "b", status="sold", image_uri=None)]
        put(tmp_path / "in", told)
        main(["--folder", str(tmp_path / "in"), "--once"])
        assert held(market, ["a", "b"]) == [{one["item_id"]: as_held(one) for one in told}] * 2
        logged = ListingLog.of(Lake(market.settings.lake)).not_landed(datetime.now(UTC))
        assert [(one.item_id, one.status) for one in logged] == [("a", "on_sale"), ("b", "sold")]

    def test_of_none_is_no_mistake(self, market: Small, tmp_path: Path) -> None:
        main(["--folder", str(tmp_path), "--once"])
        assert not ListingLog.of(Lake(market.settings.lake)).not_landed(datetime.now(UTC))

    @given(
        told=st.lists(
            st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.sampled_from(("on_sale", "sold", "deleted"))),
            min_size=1,
            max_size=8,
            # Of two versions of one moment, either may be the one that counts.
            unique_by=lambda one: one[:2],
        ),
        repeated=st.integers(1, 3),
        seed=st.integers(0, 2**16),
    )
    @settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_ends_with_the_newest_of_each_in_any_order_and_however_often_they_come(
        self,
        market: Small,
        tmp_path: Path,
        told: list[tuple[str, int, str]],
        repeated: int,
        seed: int,
    ) -> None:
        run_of = uuid4().hex
        events = [event(market, f"{item}-{run_of}", age, status=status) for item, age, status in told]
        shuffled = events * repeated
        random.Random(seed).shuffle(shuffled)
        folder = tmp_path / run_of
        for start in range(0, len(shuffled), 3):
            put(folder, shuffled[start : start + 3])
        main(["--folder", str(folder), "--once"])
        newest: dict[str, tuple[int, str]] = {}
        for one in sorted(events, key=as_held):
            newest[one["item_id"]] = as_held(one)
        assert held(market, list(newest)) == [newest] * 2

    def test_is_followed_while_the_job_runs_and_read_again_by_the_next(self, market: Small, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        put(folder, [event(market, "old")])
        with following(folder, tmp_path / "log.txt") as wait_for:
            wait_for(lambda: all("old" in one for one in held(market, ["old"])))
            put(folder, [b"not an event", event(market, "new", 2)])
            wait_for(lambda: all("new" in one for one in held(market, ["new"])))
            put(folder, [event(market, "new", 3), event(market, "new", 1, price=1)])
            newest = {"new": as_held(event(market, "new", 1))}
            wait_for(lambda: held(market, ["new"]) == [newest] * 2)
        before = held(market, ["old", "new"])
        assert [one["text"] for one in set_aside(market)] == ["not an event"]
        main(["--folder", str(folder), "--once"])
        assert held(market, ["old", "new"]) == before


class TestUnusable:
    def test_events_are_set_aside_with_their_text_and_the_reason(self, market: Small, tmp_path: Path) -> None:
        bad = {
            b"{": "event: Invalid JSON",
            json.dumps(event(market, "x", colour="red")).encode(): "colour: Extra inputs",
            json.dumps(event(market, "y", price=-1)).encode(): "price: Input should be",
            json.dumps(event(market, "z", -3600)).encode(): "in the future",
            b"\xff\xfe": "event: Invalid JSON",
        }
        put(tmp_path, [*bad, event(market, "sound")])
        counts = counted(market, Folder(str(tmp_path), once=True))
        assert counts == {"poison": len(bad), "indexed": 1, "unusable": 0}
        found = {entry["text"]: entry["reason"] for entry in set_aside(market)}
        assert found.keys() == {one.decode(errors="replace") for one in bad}
        assert all(reason in found[one.decode(errors="replace")] for one, reason in bad.items())
        assert "sound" in held(market, ["sound"])[0]

    def test_listings_are_set_aside_and_keep_nothing_else_back(self, market: Small, tmp_path: Path) -> None:
        gone = str(market.photo("gone"))
        put(tmp_path, [event(market, "gone", image_uri=gone), event(market, "there")])
        counts = counted(market, Folder(str(tmp_path), once=True))
        assert counts == {"poison": 0, "indexed": 2, "unusable": 1}
        [entry] = set_aside(market)
        assert (entry["listing"]["item_id"], entry["listing"]["image_uri"]) == ("gone", gone)
        assert "no such file" in entry["reason"]
        assert [list(one) for one in held(market, ["gone", "there"])] == [["there"]] * 2

    def test_an_event_that_comes_late_is_no_poison_where_the_log_feeds_the_lake(
        self, market: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It lands in the window in which it was written: `ListingLog.land`."""
        monkeypatch.setenv("LENS_LISTINGS_FEED", "service")
        put(tmp_path, [event(market, "late", 3 * 3600)])
        assert counted(market, Folder(str(tmp_path), once=True)) == {"poison": 0, "indexed": 1, "unusable": 0}
        assert "late" in held(market, ["late"])[0]


def test_a_live_index_that_cannot_be_written_ends_the_local_job_and_loses_nothing(
    market: Small, tmp_path: Path
) -> None:
    client = market.search_index.client
    put(tmp_path, [event(market, "kept")])
    client.indices.put_settings(index=market.live.name, settings={"index.blocks.write": True})
    try:
        with pytest.raises(Exception, match="block") as failed:
            main(["--folder", str(tmp_path), "--once"])
        assert "remove the block" in (refusal(failed.value) or "")
    finally:
        client.indices.put_settings(index=market.live.name, settings={"index.blocks.write": None})
    assert [one.item_id for one in ListingLog.of(Lake(market.settings.lake)).not_landed(datetime.now(UTC))] == ["kept"]
    main(["--folder", str(tmp_path), "--once"])
    assert [list(one) for one in held(market, ["kept"])] == [["kept"]] * 2


def test_a_stream_is_indexed_bundle_by_bundle(market: Small) -> None:
    """As from a subscription: elements with their own times, in several bundles, and an end that never comes in reality."""
    stream = test_stream.TestStream()
    for n in range(3):
        stream.add_elements([json.dumps(event(market, f"s{n}-{i}")).encode() for i in range(2)])
        stream.advance_processing_time(1)
    stream.advance_watermark_to_infinity()
    config = configure(Subscription(_SUBSCRIPTION), market.settings)
    with beam.Pipeline("BundleBasedDirectRunner", options=PipelineOptions(streaming=True)) as pipeline:
        run(pipeline | stream, config)
    names = [f"s{n}-{i}" for n in range(3) for i in range(2)]
    assert [sorted(one) for one in held(market, names)] == [names] * 2
    files = ListingLog.of(Lake(market.settings.lake)).files_not_landed(datetime.now(UTC))
    assert len(files) > 1


class TestSubscription:
    def test_is_what_the_pipeline_reads(self) -> None:
        pipeline = beam.Pipeline(options=PipelineOptions(streaming=True))
        Subscription(_SUBSCRIPTION).events(pipeline)
        transforms = pipeline.to_runner_api().components.transforms.values()
        [read] = [one for one in transforms if one.spec.urn == "beam:transform:pubsub_read:v1"]
        assert _SUBSCRIPTION.encode() in read.spec.payload

    def test_needs_a_runner_that_has_pub_sub_and_its_whole_name(self, market: Small) -> None:
        with pytest.raises(LensError, match="FnApiRunner has no Pub/Sub"):
            main(["--subscription", _SUBSCRIPTION])
        with pytest.raises(LensError, match="'listings' is no whole name"):
            main(["--subscription", "listings"])
        with pytest.raises(LensError, match="a subscription has no end"):
            main(["--subscription", _SUBSCRIPTION, "--once"])


def counted(market: Small, source: Folder) -> dict[str, int]:
    """Run the pipeline to its end. Returns its metrics."""
    config = configure(source, market.settings)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    run(source.events(pipeline), config)
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace("index_listings"))["counters"]
    return {counter.key.metric.name: counter.committed for counter in found}


@contextmanager
def following(folder: Path, log: Path) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Run the job as a program that follows a folder; gives what waits until something is so, while the job runs."""
    command = [sys.executable, "-m", "beam_jobs.index_listings", "--folder", str(folder)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=dict(os.environ), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )

    def wait_for(condition: Callable[[], bool]) -> None:
        while not condition():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)

    try:
        yield wait_for
    finally:
        end_group(process, 2)
