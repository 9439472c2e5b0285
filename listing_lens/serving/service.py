"""The parts of the search service, and what its routes need of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Depends, Request
from PIL import Image

from listing_lens.embedding.sources import encoder_runtime
from listing_lens.images.source import ImageSource
from listing_lens.images.store import ImageStore, image_store
from listing_lens.lake.windows import Lake
from listing_lens.serving.callers import Caller, Callers, Rates
from listing_lens.serving.canaries import Canaries
from listing_lens.serving.index_reader import IndexReader
from listing_lens.serving.kserve import KServe
from listing_lens.serving.limits import Budget, Gate, Lag
from listing_lens.serving.listing_photos import ListingPhotos, recent_image_roots
from listing_lens.serving.listing_queue import ListingQueue
from listing_lens.serving.live_space import Follower
from listing_lens.serving.metrics import Metrics
from listing_lens.serving.photos import Photos
from listing_lens.serving.query_embedder import Generator, InProcess
from listing_lens.serving.query_encoding import QueryEncoding
from listing_lens.serving.query_texts import TextTowers
from listing_lens.serving.search_log import SearchLog
from listing_lens.serving.similar import Ranking
from listing_lens.serving.triton import Triton
from listing_lens.settings import Settings
from models.encoders.runtime import Runtime
from models.images import ImageLimits

# Photos that are decoded at once: Pillow computes without Python's lock, and the encoder needs the cores too.
_DECODERS = 2
# Photos that are received at once: each may take as much memory as a photo may be large.
_UPLOADS = 64
# How late the process may be, as a share of a request's time: each needs its attention several times.
_LAG_SHARE = 0.05


@dataclass(frozen=True)
class Service:
    """What answers requests. Its parts are shared by all of them."""

    settings: Settings
    reader: IndexReader
    generator: Generator
    text_towers: TextTowers
    follower: Follower
    encoding: QueryEncoding[Image.Image]
    text_encoding: QueryEncoding[str]
    photos: Photos
    listing_photos: ListingPhotos
    thumbnails: Gate
    ranking: Ranking
    callers: Callers
    rates: Rates
    lag: Lag
    search_log: SearchLog
    images: ImageSource
    image_store: ImageStore
    listings: ListingQueue
    metrics: Metrics
    canaries: Canaries

    @classmethod
    def of(cls, settings: Settings, generator: Generator | None = None) -> Service:
        """The service that the settings describe. Nothing is loaded or asked yet.

        Raises:
            LensError: no cluster is named.
        """
        lake = Lake(settings.lake)
        # One query is quick on the CPU, and the GPUs are left to the jobs.
        runtime = replace(encoder_runtime(settings), device="cpu")
        generator = generator or _generator(settings, lake, runtime)
        reader = IndexReader.connect(settings)
        limits = ImageLimits(settings.image_max_bytes, settings.image_max_pixels)
        images = ImageSource.of(settings)
        text_towers = TextTowers(lake, runtime, settings.search_text)
        follower, metrics = Follower(reader, generator, text_towers, settings.search_follow_s), Metrics()
        return cls(
            settings=settings,
            reader=reader,
            generator=generator,
            text_towers=text_towers,
            follower=follower,
            encoding=QueryEncoding("photos", settings.search_waiting, settings.search_together),
            text_encoding=QueryEncoding("texts", settings.search_waiting, settings.search_together),
            photos=Photos(
                limits, Gate("the network", _UPLOADS, 0), Gate("decoding", _DECODERS, settings.search_waiting)
            ),
            listing_photos=ListingPhotos(images, lambda: recent_image_roots(lake)),
            thumbnails=Gate("listings' photos", _DECODERS, settings.search_waiting),
            ranking=Ranking(settings.similar_price_factor, settings.similar_category_weight, settings.similar_pool),
            callers=Callers(settings.search_keys, settings.search_user_header, settings.search_proxies),
            rates=Rates(settings.search_rates),
            lag=Lag(_LAG_SHARE * settings.search_budget_s),
            search_log=SearchLog.of(lake, settings.search_log_days, settings.search_log_every_s),
            images=images,
            image_store=image_store(settings),
            listings=ListingQueue.of(settings, metrics),
            metrics=metrics,
            canaries=Canaries(reader, follower, metrics),
        )

    def budget(self) -> Budget:
        """The time of a request that begins now."""
        return Budget.of(self.settings.search_budget_s)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the alias meanwhile, write the log, and measure by canaries."""
        logs = [self.listings.log, *([self.search_log.log] if self.search_log.log else [])]
        parts = [self.lag.measure(), self.follower.follow(), self.canaries.run(), self.listings.run()]
        parts += [log.run() for log in logs]
        running = [asyncio.create_task(part) for part in parts]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for log in logs:
                await log.flush()
            await self.reader.close()
            await self.generator.close()
            self.text_towers.close()


def _generator(settings: Settings, lake: Lake, runtime: Runtime) -> Generator:
    if settings.search_generator:
        server = KServe(settings.search_generator)
        return Triton(server, settings.search_budget_s, settings.search_generator_at_once, runtime.trusted_code)
    return InProcess(lake, runtime)


# Not a plain function: those are run in threads.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(_service)]


def counted(what: str) -> Any:
    """A route's dependency: its caller is told by key or address, and may ask so often."""

    async def count(request: Request, service: TheService) -> Caller:
        caller = service.callers.of(request)
        await service.rates.count(what, caller)
        return caller

    return Depends(count)
