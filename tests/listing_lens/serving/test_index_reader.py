"""Reading an index of a cluster that is busy, slow or away: which of it is the cluster's fault."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest
from faulty_proxy import FaultyProxy, answer, hold
from small_index import Small

from listing_lens.errors import LensError
from listing_lens.serving.index_reader import IndexReader
from listing_lens.serving.limits import Budget, BusyError, UnavailableError

_BUDGET_S = 60.0


@pytest.fixture
def proxy(elasticsearch_url: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(elasticsearch_url) as proxy:
        yield proxy


def reading(small: Small, proxy: FaultyProxy, story: Callable[[IndexReader], Awaitable[None]]) -> None:
    """Tell a story of a reader that asks through the proxy."""

    async def tell() -> None:
        settings = small.settings.model_copy(
            update={"elasticsearch_url": proxy.url, "search_budget_s": _BUDGET_S, "search_in_flight": 1}
        )
        reader = IndexReader.connect(settings)
        try:
            await story(reader)
        finally:
            await reader.close()

    asyncio.run(tell())


class TestFaults:
    def test_a_cluster_that_has_too_much_to_do_is_asked_again(self, small: Small, proxy: FaultyProxy) -> None:
        async def story(reader: IndexReader) -> None:
            for _ in range(reader.breaker.failures_to_open):
                with pytest.raises(BusyError, match="has more to do than it can"):
                    await reader.stored(small.live, "m011", Budget.of(_BUDGET_S))
            assert await reader.stored(small.live, "m011", Budget.of(_BUDGET_S)) is not None

        proxy.add(answer(429), path="_doc", times=5)
        reading(small, proxy, story)

    def test_a_request_whose_time_was_spent_elsewhere_says_nothing_about_the_cluster(
        self, small: Small, proxy: FaultyProxy
    ) -> None:
        """As when photos wait for the encoder: all searches after them would be refused too, with a cluster that is well."""
        until = threading.Event()

        async def story(reader: IndexReader) -> None:
            for _ in range(reader.breaker.failures_to_open):
                with pytest.raises(BusyError, match="too little of the request's time"):
                    await reader.stored(small.live, "m011", Budget.of(0.05))
            until.set()
            assert await reader.stored(small.live, "m011", Budget.of(_BUDGET_S)) is not None

        proxy.add(hold(until), path="_doc")
        reading(small, proxy, story)

    def test_a_cluster_that_is_late_for_requests_with_time_is_not_asked_on_and_on(
        self, small: Small, proxy: FaultyProxy
    ) -> None:
        until = threading.Event()

        async def story(reader: IndexReader) -> None:
            patient = IndexReader(reader.client, reader.alias, reader.gate, reader.breaker, fair_s=0.0)
            for _ in range(reader.breaker.failures_to_open):
                with pytest.raises(UnavailableError, match="did not answer in the request's time"):
                    await patient.stored(small.live, "m011", Budget.of(0.05))
            with pytest.raises(UnavailableError, match="does not answer"):
                await patient.stored(small.live, "m011", Budget.of(_BUDGET_S))
            until.set()

        proxy.add(hold(until), path="_doc")
        reading(small, proxy, story)

    @pytest.mark.parametrize("status", [502, 503, 504])
    def test_a_cluster_that_restarts_is_not_asked_on_and_on(
        self, small: Small, proxy: FaultyProxy, status: int
    ) -> None:
        async def story(reader: IndexReader) -> None:
            for _ in range(reader.breaker.failures_to_open):
                with pytest.raises(UnavailableError, match="is restarting"):
                    await reader.stored(small.live, "m011", Budget.of(_BUDGET_S))
            with pytest.raises(UnavailableError, match="does not answer"):
                await reader.stored(small.live, "m011", Budget.of(_BUDGET_S))

        proxy.add(answer(status), path="_doc")
        reading(small, proxy, story)

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_cluster_that_refuses_is_said_and_asked_again(
        self, small: Small, proxy: FaultyProxy, status: int
    ) -> None:
        async def story(reader: IndexReader) -> None:
            with pytest.raises(LensError, match=f"answered {status}: .*check LENS_ELASTICSEARCH_API_KEY"):
                await reader.live(Budget.of(_BUDGET_S))
            assert await reader.live(Budget.of(_BUDGET_S)) == small.live

        proxy.add(answer(status), times=1)
        reading(small, proxy, story)


class TestSeveral:
    def test_requests_take_one_place_between_them(self, small: Small, proxy: FaultyProxy) -> None:
        async def story(reader: IndexReader) -> None:
            budget = Budget.of(_BUDGET_S)
            async with reader.several(budget) as several:
                stored = await several.stored(small.live, "m011", budget)
                assert stored is not None
                assert stored.vector is not None
                assert (await several.nearest(small.live, stored.vector, 1, budget))[0].item_id == "m011"
                assert (reader.gate.inside, reader.gate.waiting) == (1, 0)
                # There is one place.
                other = asyncio.create_task(reader.stored(small.live, "m011", budget))
                await asyncio.sleep(0)
                assert reader.gate.waiting == 1
            assert await other is not None
            assert (reader.gate.inside, reader.gate.waiting) == (0, 0)

        reading(small, proxy, story)
