"""Which of an item's versions goes on: the same whatever the order and the grouping in which a runner brings them together."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import apache_beam as beam
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st
from tiny import FIRST, SECOND, listing

from beam_jobs.transforms.embedding import Arrival, keep_newest
from listing_lens.lake.records import Status

ARRIVALS = st.builds(
    Arrival,
    st.builds(
        listing,
        st.just("a"),
        minute=st.integers(0, 2),
        price=st.integers(1, 3),
        status=st.sampled_from([Status.ON_SALE, Status.SOLD]),
    ),
    st.sampled_from([FIRST, SECOND]),
)


def combined(shards: list[list[Arrival]]) -> tuple[Arrival | None, Counter[str]]:
    combine = keep_newest()
    accumulators = []
    for shard in shards:
        accumulator = combine.create_accumulator()
        for arrival in shard:
            accumulator = combine.add_input(accumulator, arrival)
        accumulators.append(accumulator)
    return combine.extract_output(combine.merge_accumulators(accumulators))


class TestKeepNewest:
    @given(arrivals=st.lists(ARRIVALS, min_size=1, max_size=8), data=st.data())
    def test_is_the_same_in_any_order_and_grouping(self, arrivals: list[Arrival], data: st.DataObject) -> None:
        expected, older = combined([arrivals])
        shuffled = data.draw(st.permutations(arrivals))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(arrivals)), max_size=4)))
        shards = [shuffled[start:end] for start, end in zip([0, *cuts], [*cuts, len(arrivals)], strict=True)]
        assert combined(shards) == (expected, older)

    @given(arrivals=st.lists(ARRIVALS, min_size=1, max_size=8))
    def test_keeps_the_largest_version_and_counts_each_other_one_by_its_window(self, arrivals: list[Arrival]) -> None:
        best, older = combined([arrivals])
        assert best is not None
        assert best.listing.version == max(arrival.listing.version for arrival in arrivals)
        assert older + Counter([best.window.name]) == Counter(arrival.window.name for arrival in arrivals)

    def test_of_one_time_takes_what_is_off_sale(self) -> None:
        on_sale = Arrival(listing("a", price=9), FIRST)
        sold = Arrival(listing("a", status=Status.SOLD), FIRST)
        for order in ([on_sale, sold], [sold, on_sale]):
            assert combined([order]) == (sold, Counter({FIRST.name: 1}))

    def test_works_by_item_in_a_pipeline(self) -> None:
        arrivals = [Arrival(listing(item, minute=n), FIRST) for item in "ab" for n in range(3)]
        with TestPipeline() as pipeline:
            kept = (
                pipeline
                | beam.Create(arrivals)
                | beam.WithKeys(lambda arrival: arrival.listing.item_id)
                | beam.CombinePerKey(keep_newest())
                | beam.MapTuple(lambda item, kept: (item, kept[0].listing.updated_at - FIRST.start, dict(kept[1])))
            )
            two = timedelta(minutes=2)
            assert_that(kept, equal_to([("a", two, {FIRST.name: 2}), ("b", two, {FIRST.name: 2})]))
