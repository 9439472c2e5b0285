"""The search service under load: its overhead, throughput, how it sheds load, and what a swap or a restart does to searches.

    python -m benchmarks.search_service --java /usr/lib/jvm/temurin-25-jdk
    python -m benchmarks.search_service --only similar overload      # some parts of it

The service (`lens serve`), an Elasticsearch node and a load generator (benchmarks/open_loop.py) are processes of their own, which
talk over loopback and share the machine. Two indexes hold the same items in two spaces of 128 dimensions: some photos, embedded
by a SigLIP with random weights that is as large as the argument says, and random clusters about them (benchmarks/clustered.py).
Each is merged to one segment, in which a search is deterministic, so that answers can be checked: a search by photo must find the
photo's own listing first, with a score of 1; in `changes`, similar items must be those that the index gave before.

- `similar`: similar items against the two requests of Elasticsearch that they take, made by the same client library without
  the service, and against the second alone; at the same constant rate, alternately.
- `photo`: search by photo against the encoder and a search in Elasticsearch alone, one at a time; then as many as come.
- `overload`: twice as much as can be answered, of each operation: what is refused, how quick the rest is, when all is as before.
- `changes`: photos and similar items while the alias moves to the other space, and while Elasticsearch is away for ten seconds.
- `events`: events per second that are in the lake when they are answered.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import orjson
import psutil
import torch
from elasticsearch import AsyncElasticsearch, OrjsonSerializer
from numpy.typing import NDArray
from PIL import Image
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from benchmarks.clustered import clustered
from benchmarks.node import Node, restartable_node
from benchmarks.open_loop import Ask, LoadGenerator, Outcome, Reply, Requests, percentiles
from listing_lens.lake.fits import save_projection
from listing_lens.lake.records import Listing, Status
from listing_lens.lake.windows import Lake
from listing_lens.search.index import Index, SearchIndex
from listing_lens.search.queries import hit_of, hits_of, nearest
from listing_lens.serving.similar import Ranking, candidates_of, candidates_wanted, rank
from listing_lens.settings import Settings, load_settings
from listing_lens.stack.ports import choose_port
from models.embedder import EmbedderCard
from models.encoders.encoder import Encoder, shared_encoder
from models.images import ImageLimits, decode_image
from models.moments import Moments
from models.projection import fit_projection

_PARTS = ("similar", "photo", "overload", "changes", "events")
_DIMS = 128
_K = 20
_PHOTOS = 160
# Photos on which each of the two projections is fitted.
_FITTED = 140
_PHOTO_SIZE = (1440, 1080)
# Items whose similar ones are known in both indexes.
_PROBES = 300
# hidden size, layers, heads, side in pixels of SigLIP's vision tower.
_ENCODERS = {"tiny": (192, 12, 3, 224), "small": (384, 12, 6, 224), "base": (768, 12, 12, 256)}
# A rate is sustained while the 99th percentile stays below this, a sixth of the budget, in ms, and latencies do not grow.
_BOUND_MS = 500.0
_EVENTS_TOGETHER = 10
_AWAY_S = 10.0
# What a node takes to start, at most.
_STARTING_S = 50.0
_LIMITS = ImageLimits(10**8, 10**8)

Vectors = NDArray[np.float32]


def main() -> None:
    """Start all processes, fill the indexes, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--encoder", choices=list(_ENCODERS), default="tiny")
    parser.add_argument("--threads", type=int, default=1, help="of the encoder, in the service and alone")
    parser.add_argument("--rounds", type=int, default=3, help="of what is compared")
    parser.add_argument("--seconds", type=float, default=15, help="of each load")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--heap", default="2g", help="the node's")
    parser.add_argument("--java", type=Path, help="a JDK with the vector module; see benchmarks/node.py")
    given = parser.parse_args()
    # Also of the service.
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    torch.set_num_threads(given.threads)
    with (
        tempfile.TemporaryDirectory() as scratch,
        restartable_node(Path(scratch) / "node", given.heap, given.java) as node,
    ):
        catalog = Catalog.make(Path(scratch), node, given.rows, given.encoder)
        with serving(catalog.settings, Path(scratch)) as service, LoadGenerator() as generator:
            bench = Bench(catalog, service, node, generator, given.rounds, given.seconds)
            bench.learn()
            print(f"{given.rows:,} × {_DIMS}-d, SigLIP {given.encoder}, {os.cpu_count()} cores", flush=True)
            for part in given.only:
                print(f"{part}: load average {os.getloadavg()[0]:.1f}", flush=True)
                getattr(bench, part)()


# ---- what is searched ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Catalog:
    """Items in two indexes, of two spaces; the first of them are those of the photos."""

    settings: Settings
    search_index: SearchIndex
    indexes: tuple[Index, Index]
    vectors: tuple[Vectors, Vectors]
    ids: tuple[str, ...]
    photos: tuple[bytes, ...]
    encoder: Encoder

    @classmethod
    def make(cls, folder: Path, node: Node, rows: int, size: str) -> Catalog:
        settings = load_settings(
            home=folder / "home",
            lake=str(folder / "lake"),
            elasticsearch_url=node.url,
            alias="bench",
            encoder_backends=("float32",),
            # Every caller of the benchmark has one address.
            search_rates={"search": "", "similar": "", "photos": ""},
            search_open_events=True,
        )
        encoder = shared_encoder(str(_save_encoder(folder / "encoder", size)))
        photos = tuple(_photo(seed) for seed in range(_PHOTOS))
        embedded = np.concatenate([encoder.embed([decode_image(photo, _LIMITS)]) for photo in photos])
        listings = list(_listings(rows))
        search_index = SearchIndex.connect(settings)
        indexes, vectors = [], []
        for build, fitted_on in (("one", embedded[:_FITTED]), ("two", embedded[-_FITTED:])):
            projection = fit_projection(Moments.of(fitted_on), _DIMS)
            save_projection(Lake(settings.lake), projection)
            card = EmbedderCard(
                encoder_source=str(folder / "encoder"),
                encoder_id=encoder.encoder_id,
                encoder_dims=encoder.dims,
                projection_id=projection.projection_id,
                dims=_DIMS,
            )
            of_photos = projection.apply(embedded)
            of_space = np.concatenate([of_photos, _others(of_photos, rows - _PHOTOS, seed=len(indexes))])
            index = search_index.create(card, build)
            for start in range(0, rows, 1000):
                part = slice(start, start + 1000)
                search_index.write(index.name, listings[part], list(of_space[part]))
            search_index.finish_load(index.name)
            search_index.client.options(request_timeout=3600).indices.forcemerge(index=index.name, max_num_segments=1)
            search_index.refresh(index.name)
            indexes.append(index)
            vectors.append(of_space)
        search_index.swap(indexes[0].name)
        return cls(
            settings,
            search_index,
            (indexes[0], indexes[1]),
            (vectors[0], vectors[1]),
            tuple(listing.item_id for listing in listings),
            photos,
            encoder,
        )

    def similar_in(self, index: Index, item_id: str) -> list[str]:
        """The ids of the items that are similar to one in an index."""
        client, ranking = self.search_index.client, ranking_of(self.settings)
        source = client.get(index=index.name, id=item_id, source_exclude_vectors=False)["_source"]
        item, vector = hit_of(item_id, source, 1.0), np.array(source["vector"], np.float32)
        body = nearest(index.card, vector, candidates_wanted(_K, ranking), candidates_of(item, ranking))
        hits = hits_of(client.search(index=index.name, **body))
        return [one.hit.item_id for one in rank(item, hits, _K, ranking)]


def _finds(catalog: Catalog, number: int, which: int) -> bool:
    """Whether the search in an index for an item's own vector finds the item: a graph may have no way to it."""
    hits = catalog.search_index.search(catalog.indexes[which], catalog.vectors[which][number], _K)
    return bool(hits) and hits[0].item_id == catalog.ids[number]


def _others(of_photos: Vectors, rows: int, seed: int) -> Vectors:
    """Unit vectors (rows, dims) of items about those of the photos: a graph has no way to what is far from all others."""
    chance = np.random.default_rng(seed)
    vectors = np.concatenate(list(clustered(rows, _DIMS, seed))) + of_photos[chance.choice(len(of_photos), rows)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def ranking_of(settings: Settings) -> Ranking:
    return Ranking(settings.similar_price_factor, settings.similar_category_weight, settings.similar_pool)


def _save_encoder(folder: Path, size: str) -> Path:
    """A SigLIP with random weights and next to no text tower."""
    hidden, layers, heads, side = _ENCODERS[size]
    text = {"vocab_size": 64, "num_hidden_layers": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    vision = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": 16,
    }
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def _photo(seed: int) -> bytes:
    """A JPEG like a phone's: soft shades and noise; another seed looks different."""
    chance, (width, height) = np.random.default_rng(seed), _PHOTO_SIZE
    shades = Image.fromarray(chance.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(_PHOTO_SIZE)
    noise = chance.normal(0, 6, (height, width, 1)).astype(np.float32)
    data = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(shades) + noise, 0, 255).astype(np.uint8)).save(data, "JPEG", quality=85)
    return data.getvalue()


def _listings(rows: int) -> Iterator[Listing]:
    chance, moment = np.random.default_rng(0), datetime(2026, 1, 1, tzinfo=UTC)
    prices, kinds = np.exp(chance.normal(8, 1, rows)).astype(int) + 1, chance.integers(0, 200, rows)
    for number, (price, kind) in enumerate(zip(prices.tolist(), kinds.tolist(), strict=True)):
        category = (f"department {kind % 5}", f"kind {kind % 40}", f"sort {kind}")
        title = f"an item of sort {kind}, as good as new, with a title of usual length"
        image = f"https://images.example/{number:08d}.jpg"
        yield Listing(f"i{number:08d}", title, category, price, image, Status.ON_SALE, moment, moment)


# ---- the service -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """The service, and its process."""

    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """Seconds of processor time that it has taken."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def serving(settings: Settings, folder: Path) -> Iterator[Served]:
    """Run `lens serve` with some settings until the block ends."""
    port = choose_port([])
    url, log = f"http://127.0.0.1:{port}", folder / "service.log"
    command = [sys.executable, "-m", "listing_lens.cli", "serve", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | settings.environment)
        try:
            _wait_until_ready(url, process, log)
            yield Served(url, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()
            faults = [line for line in log.read_text().splitlines() if "Traceback" in line]
            print(f"the service's log has {len(faults)} faults", *faults[:3], sep="\n")


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        if process.poll() is not None:
            sys.exit(f"the service ended: {log.read_text()[-3000:]}")
        try:
            if httpx.get(f"{url}/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)


# ---- requests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToService:
    """Requests to the service.

    Attributes:
        url: the service's.
        spaces: the space of each index.
        patience_s: for how long a client waits.
    """

    url: str
    spaces: Mapping[str, str]
    patience_s: float = 30.0

    async def reply(self, session: aiohttp.ClientSession, method: str, path: str, **request: Any) -> tuple[Reply, Any]:
        """Ask, and look at what any answer must have. Returns the answer's body too."""
        try:
            async with session.request(method, f"{self.url}{path}", **request) as answer:
                body = orjson.loads(await answer.read())
        except (aiohttp.ClientError, TimeoutError) as err:
            return Reply(0, detail=type(err).__name__), None
        detail = str(body.get("detail", ""))
        reply = Reply(answer.status, body.get("index", ""), "", detail, "Retry-After" in answer.headers)
        if answer.status == 200 and self.spaces.get(body["index"]) != body["space"]:
            reply = replace(reply, wrong=f"space {body['space']} of index {body['index']}")
        return reply, body

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=self.patience_s)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            yield session


@dataclass(frozen=True)
class Similar(ToService):
    """Asks for what is similar to items.

    Attributes:
        ids: the items.
        expected: what is similar to them, by index; nothing is expected of others.
    """

    ids: tuple[str, ...] = ()
    expected: Mapping[str, Mapping[str, list[str]]] | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        async with self.session() as session:

            async def ask(number: int) -> Reply:
                item_id = self.ids[number % len(self.ids)]
                reply, body = await self.reply(session, "GET", f"/items/{item_id}/similar?k={_K}")
                if reply.status != 200 or reply.wrong:
                    return reply
                found = [one["item_id"] for one in body["results"]]
                if self.expected and found != self.expected[reply.index][item_id]:
                    return replace(reply, wrong=f"similar to {item_id}: {found}")
                return reply

            yield ask


@dataclass(frozen=True)
class Photos(ToService):
    """Searches by photo; each is the photo of a listing."""

    ids: tuple[str, ...] = ()
    photos: tuple[bytes, ...] = ()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        async with self.session() as session:

            async def ask(number: int) -> Reply:
                number %= len(self.photos)
                reply, body = await self.reply(
                    session,
                    "POST",
                    f"/search?k={_K}",
                    data=self.photos[number],
                    headers={"Content-Type": "image/jpeg"},
                )
                if reply.status != 200 or reply.wrong:
                    return reply
                first = body["results"][0]
                if first["item_id"] != self.ids[number] or abs(first["score"] - 1) > 1e-3:
                    return replace(reply, wrong=f"{first['item_id']} ({first['score']}) for {self.ids[number]}")
                return reply

            yield ask


@dataclass(frozen=True)
class Events(ToService):
    """Tells events, some at a time."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        async with self.session() as session:

            async def ask(number: int) -> Reply:
                told = [
                    {"kind": "tap", "search_id": f"{number:032x}", "item_id": f"event {n}"}
                    for n in range(_EVENTS_TOGETHER)
                ]
                return (await self.reply(session, "POST", "/events", json={"events": told}))[0]

            yield ask


@dataclass(frozen=True)
class Turns:
    """Several kinds of requests in turn, of each some in a row: whatever else the machine does, it does to all of them."""

    kinds: tuple[Requests, ...]
    in_a_row: int = 1

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        async with _open_all(self.kinds) as asks:

            async def ask(number: int) -> Reply:
                return await asks[self.kind_of(number)](number)

            yield ask

    def kind_of(self, number: int) -> int:
        return number // self.in_a_row % len(self.kinds)


@asynccontextmanager
async def _open_all(kinds: Sequence[Requests]) -> AsyncIterator[list[Ask]]:
    if not kinds:
        yield []
        return
    async with kinds[0].open() as first, _open_all(kinds[1:]) as others:
        yield [first, *others]


@dataclass(frozen=True)
class Bare:
    """The requests of Elasticsearch that similar items take, by the service's client library; or the second of them alone."""

    url: str
    index: str
    card: EmbedderCard
    ids: tuple[str, ...]
    ranking: Ranking
    connections: int
    # Of each item, its vector and price, where they are not asked for.
    known: Mapping[str, tuple[list[float], int]] | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        client = AsyncElasticsearch(
            self.url, serializer=OrjsonSerializer(), connections_per_node=self.connections, max_retries=0
        )
        # A body to fill in, so that the peer's processor time is all Elasticsearch's client's.
        body = nearest(self.card, np.zeros(_DIMS, np.float32), candidates_wanted(_K, self.ranking))

        async def ask(number: int) -> Reply:
            item_id = self.ids[number % len(self.ids)]
            if self.known:
                vector, price = self.known[item_id]
            else:
                answer = await client.get(index=self.index, id=item_id, source_exclude_vectors=False)
                vector, price = answer["_source"]["vector"], answer["_source"]["price"]
            item = hit_of(item_id, _source(price), 1.0)
            knn = {**body["knn"], "query_vector": vector, "filter": candidates_of(item, self.ranking).clauses}
            found = await client.search(
                index=self.index, knn=knn, size=body["size"], allow_partial_search_results=False
            )
            return Reply(200 if found["hits"]["hits"] else 0, self.index)

        try:
            yield ask
        finally:
            await client.close()


def _source(price: int) -> dict[str, Any]:
    return {"title": "", "category": [], "price": price, "status": "on_sale", "image_uri": ""}


@dataclass(frozen=True)
class BareNearest:
    """Searches by vectors, as a search by photo makes them."""

    url: str
    index: str
    bodies: tuple[dict[str, Any], ...]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        client = AsyncElasticsearch(self.url, serializer=OrjsonSerializer(), max_retries=0)

        async def ask(number: int) -> Reply:
            found = await client.search(index=self.index, **self.bodies[number % len(self.bodies)])
            return Reply(200 if found["hits"]["hits"] else 0, self.index)

        try:
            yield ask
        finally:
            await client.close()


@dataclass(frozen=True)
class BareEncoder:
    """The encoder in the generator's own process: embeds decoded photos, or only decodes them."""

    source: str
    photos: tuple[bytes, ...]
    only_decode: bool = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        encoder = shared_encoder(self.source)
        decode = partial(decode_image, limits=_LIMITS, min_side=encoder.image_side)
        decoded = [] if self.only_decode else [decode(photo) for photo in self.photos]

        async def ask(number: int) -> Reply:
            number %= len(self.photos)
            if self.only_decode:
                decode(self.photos[number])
            else:
                encoder.embed([decoded[number]])
            return Reply(200)

        yield ask


# ---- measurements ----------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """What is measured, part by part."""

    catalog: Catalog
    service: Served
    node: Node
    generator: LoadGenerator
    rounds: int
    seconds: float

    def learn(self) -> None:
        """Make the requests, and find what is similar to some items in both indexes."""
        catalog = self.catalog
        spaces = {index.name: index.card.space for index in catalog.indexes}
        chance = np.random.default_rng(0)
        probes = tuple(catalog.ids[n] for n in chance.choice(len(catalog.ids), _PROBES, replace=False))
        expected = {
            index.name: {item_id: catalog.similar_in(index, item_id) for item_id in probes} for index in catalog.indexes
        }
        sample = tuple(catalog.ids[n] for n in chance.choice(len(catalog.ids), min(5000, len(catalog.ids)), False))
        self.similar_items = Similar(self.service.url, spaces, ids=sample)
        self.probes = Similar(self.service.url, spaces, ids=probes, expected=expected)
        found = [number for number in range(_PHOTOS) if all(_finds(catalog, number, which) for which in (0, 1))]
        self.photos = Photos(
            self.service.url,
            spaces,
            ids=tuple(catalog.ids[number] for number in found),
            photos=tuple(catalog.photos[number] for number in found),
        )
        live = catalog.indexes[0]
        self.bare = Bare(
            self.node.url,
            live.name,
            live.card,
            sample,
            ranking_of(catalog.settings),
            catalog.settings.search_in_flight,
        )
        numbers = {item_id: number for number, item_id in enumerate(catalog.ids)}
        prices = [listing.price for listing in _listings(len(catalog.ids))]
        known = {
            item_id: (catalog.vectors[0][numbers[item_id]].tolist(), prices[numbers[item_id]]) for item_id in sample
        }
        self.bare_search = replace(self.bare, known=known)
        self._expect_right(self.generator.closed(self.photos, 1, 10))
        self._expect_right(self.generator.closed(self.probes, 2, 10))
        self.generator.closed(self.bare, 2, 5)

    # ---- similar items ----

    def similar(self) -> None:
        kinds = {"service": self.similar_items, "get and kNN": self.bare, "kNN": self.bare_search}
        together = Turns(tuple(kinds.values()))
        self._compare_with_bare(
            "one at a time", kinds, together, lambda: self.generator.closed(together, 1, self.seconds)
        )
        rates = {name: self._sustained(requests, 10) for name, requests in kinds.items() if name != "kNN"}
        print(f"  sustained: {', '.join(f'{name} {rate:.0f}/s' for name, rate in rates.items())}")
        rate = 0.8 * rates["service"]
        # A second of each, so that each is alone with its load.
        slices = Turns(tuple(kinds.values()), in_a_row=max(1, round(rate)))
        self._compare_with_bare(f"{rate:.0f}/s", kinds, slices, lambda: self.generator.run(slices, rate, self.seconds))
        before = self.service.cpu_s()
        asked = len(self.generator.run(self.similar_items, rate, self.seconds))
        print(f"    the service's processor time: {1000 * (self.service.cpu_s() - before) / asked:.2f} ms a request")

    def _compare_with_bare(
        self, when: str, kinds: Mapping[str, Requests], turns: Turns, run: Callable[[], list[Outcome]]
    ) -> None:
        found: dict[str, list[Outcome]] = {name: [] for name in kinds}
        for _ in range(self.rounds):
            for number, outcome in enumerate(run()):
                found[list(kinds)[turns.kind_of(number)]].append(outcome)
        ms = {name: percentiles(outcomes, 50, 99) for name, outcomes in found.items()}
        for name, (p50, p99) in ms.items():
            asked = len(found[name])
            print(f"  similar, {when}: {name:<12} p50 {p50:6.2f} ms, p99 {p99:6.2f} ms of {asked}", flush=True)
        for name in list(ms)[1:]:
            for n, share, most in ((0, "p50", 3.0), (1, "p99", 10.0)):
                _verdict(f"{share} over {name}", ms["service"][n] - ms[name][n], most, "ms")
        self._expect_right(found["service"])

    # ---- search by photo ----

    def photo(self) -> None:
        catalog, live = self.catalog, self.catalog.indexes[0]
        vectors = catalog.vectors[0][:_PHOTOS]
        some = self.photos.photos[:32]
        kinds: dict[str, Requests] = {
            "service": self.photos,
            "encoder": BareEncoder(catalog.encoder.source, some),
            "kNN": BareNearest(self.node.url, live.name, tuple(nearest(live.card, vector, _K) for vector in vectors)),
            "decoding a JPEG": BareEncoder(catalog.encoder.source, some, only_decode=True),
        }
        turns = Turns(tuple(kinds.values()))
        found: dict[str, list[Outcome]] = {name: [] for name in kinds}
        for _ in range(self.rounds):
            for number, outcome in enumerate(self.generator.closed(turns, 1, self.seconds)):
                found[list(kinds)[turns.kind_of(number)]].append(outcome)
        p50 = {name: percentiles(outcomes, 50)[0] for name, outcomes in found.items()}
        print("  one at a time, p50:", ", ".join(f"{name} {ms:.1f} ms" for name, ms in p50.items()))
        alone = p50["encoder"] + p50["kNN"]
        _verdict("end to end by encoder and kNN", p50["service"] / alone, 1.15, "times")
        _verdict("and by decoding too", p50["service"] / (alone + p50["decoding a JPEG"]), 1.15, "times")
        self._expect_right(found["service"])
        together = catalog.settings.search_together
        decoded = [
            decode_image(photo, _LIMITS, min_side=catalog.encoder.image_side) for photo in catalog.photos[:together]
        ]
        shares = []
        for _ in range(self.rounds):
            outcomes = self.generator.closed(self.photos, together, self.seconds)
            ours = sum(outcome.reply.status == 200 for outcome in outcomes) / self.seconds
            batch = _median_ms(catalog.encoder.embed, [decoded], self.seconds)
            theirs = 1000 * together / batch
            shares.append((ours / theirs, ours, theirs))
        share, ours, theirs = (statistics.median(column) for column in zip(*shares, strict=True))
        print(f"  {together} at a time: {ours:.1f} photos/s; the encoder alone in batches of {together}: {theirs:.1f}")
        _verdict("throughput by the encoder's", share, 0.85, "times", least=True)

    # ---- overload ----

    def overload(self) -> None:
        for name, requests in (("similar", self.similar_items), ("photo", self.photos)):
            # As many clients as there are places; what is refused is not counted.
            crowd = self.generator.closed(requests, self.catalog.settings.search_in_flight, self.seconds)
            rate = sum(outcome.reply.status == 200 for outcome in crowd) / self.seconds
            before = self.generator.run(requests, 0.8 * rate, self.seconds)
            under = self.generator.run(requests, 2 * rate, 2 * self.seconds)
            after = self.generator.run(requests, 0.8 * rate, 2 * self.seconds)
            usual, crowded = percentiles(before, 50, 99), percentiles(under, 50, 99, 100)
            print(
                f"  {name}: {rate:.1f}/s at most; at 0.8 of it {_statuses(before)}, p50 {usual[0]:.0f}, p99 {usual[1]:.0f} ms"
            )
            print(
                f"    at twice: {_statuses(under)}, accepted p50 {crowded[0]:.0f}, p99 {crowded[1]:.0f}, "
                f"longest {crowded[2]:.0f} ms; {sum(o.reply.status == 200 for o in under) / (2 * self.seconds):.1f}/s answered"
            )
            late = np.percentile([outcome.late_ms for outcome in under], 99)
            print(f"    the generator was late by {late:.0f} ms at the 99th percentile")
            refused = [outcome.ms for outcome in under if outcome.reply.status != 200]
            if refused:
                print(
                    f"    refused: p50 {np.median(refused):.0f} ms, p99 {np.percentile(refused, 99):.0f} ms; {_reasons(under)}"
                )
            _verdict("accepted p99 within the budget", crowded[1] / 1000, self.catalog.settings.search_budget_s, "s")
            _verdict("refused otherwise than by 429", sum(o.reply.status not in (200, 429) for o in under), 0, "")
            _verdict("recovered after", _recovered_s(after, _mean_ms(before), since=under[-1].due), 5, "s")
            self._expect_right([*before, *under, *after])

    # ---- changes ----

    def changes(self) -> None:
        rates = [
            0.3 * self._sustained(requests, start) for requests, start in ((self.probes, 20.0), (self.photos, 2.0))
        ]
        load = Turns((self.probes, self.photos))
        rate = 2 * min(rates)
        usual = _mean_ms(self.generator.run(load, rate, self.seconds))
        seconds = 4 * self.seconds + _AWAY_S + _STARTING_S
        running = self.generator.begin(load, rate, seconds)
        time.sleep(self.seconds)
        swapped = time.monotonic()
        self.catalog.search_index.swap(self.catalog.indexes[1].name)
        time.sleep(self.seconds)
        stopping = time.monotonic()
        self.node.stop()
        time.sleep(_AWAY_S)
        self.node.start()
        back = time.monotonic()
        outcomes = running.result()
        self.catalog.search_index.swap(self.catalog.indexes[0].name)
        budget_ms = 1000 * self.catalog.settings.search_budget_s
        phases = {
            "before the server is away": [o for o in outcomes if o.due < stopping - budget_ms / 1000],
            "while it is away": [o for o in outcomes if stopping - budget_ms / 1000 <= o.due < back],
            "after it is back": [o for o in outcomes if o.due >= back],
        }
        print(
            f"  {rate:.1f}/s of both kinds for {seconds:.0f} s, {usual:.0f} ms on average; "
            f"the server was away for {back - stopping:.0f} s"
        )
        for phase, of_phase in phases.items():
            print(f"    {phase}: {_statuses(of_phase)}; {_reasons(of_phase)}")
        names = [index.name for index in self.catalog.indexes]
        moved = [o.due for o in outcomes if o.reply.index == names[1]]
        late = [o for o in outcomes if o.reply.index == names[0] and moved and o.due > moved[0] + 1]
        _verdict("seconds from the swap to the first answer of the other index", moved[0] - swapped, 2, "s")
        _verdict("answers of the index before a second after that", len(late), 0, "")
        _verdict("errors before the server is away", _errors(phases["before the server is away"]), 0, "")
        refusals = [o for o in outcomes if o.reply.status not in (200,)]
        other = [o for o in refusals if o.reply.status not in (429, 503) or not o.reply.retry_after]
        _verdict("errors that are no 429 or 503 with Retry-After", len(other), 0, "")
        _verdict("longest of all", max(o.ms for o in outcomes), budget_ms + 250, "ms")
        errors = [o.due for o in phases["after it is back"] if o.reply.status != 200]
        _verdict("last error after it is back", max(errors, default=back) - back, 2, "s")
        _verdict("as quick as before after", _recovered_s(phases["after it is back"], usual, since=back), 10, "s")
        self._expect_right(outcomes)

    # ---- events ----

    def events(self) -> None:
        log = Path(self.catalog.settings.lake, "logs", "searches")
        requests = Events(self.service.url, {})
        before = _stored_events(log)
        outcomes = self.generator.closed(requests, 64, self.seconds)
        stored = sum(outcome.reply.status == 202 for outcome in outcomes) * _EVENTS_TOGETHER
        p50, p99 = percentiles(outcomes, 50, 99)
        print(
            f"  64 clients: {stored / self.seconds:.0f} events/s, {_statuses(outcomes)}, p50 {p50:.0f}, p99 {p99:.0f} ms"
        )
        _verdict("events that were answered and are not in the lake", before + stored - _stored_events(log), 0, "")
        rate = 200.0
        outcomes = self.generator.run(requests, rate, self.seconds)
        stored = sum(outcome.reply.status == 202 for outcome in outcomes) * _EVENTS_TOGETHER
        p50, p99 = percentiles(outcomes, 50, 99)
        print(
            f"  {rate:.0f} requests/s: {stored / self.seconds:.0f} events/s, {_statuses(outcomes)}, "
            f"p50 {p50:.0f}, p99 {p99:.0f} ms"
        )

    # ---- what the parts share ----

    def _sustained(self, requests: Requests, start: float) -> float:
        """The highest rate at which nothing is refused, the 99th percentile stays bounded, and latencies do not grow."""
        bound = _BOUND_MS
        if isinstance(requests, Photos):
            # A batch may be under way when a photo comes.
            bound = 1000 * self.catalog.settings.search_budget_s / 2
        good, rate, bad = 0.0, start, float("inf")
        while bad / max(good, 1e-9) > 1.1:
            seconds = max(self.seconds / 2, 20 / rate)
            # A second try, since others may have kept the machine busy.
            if any(_is_sustained(self.generator.run(requests, rate, seconds), bound) for _ in range(2)):
                good = rate
            else:
                bad = rate
            rate = good * 1.4 if bad == float("inf") else (good * bad) ** 0.5 if good else rate / 2
        return good

    def _expect_right(self, outcomes: Sequence[Outcome]) -> None:
        wrong = [outcome.reply.wrong for outcome in outcomes if outcome.reply.wrong]
        if wrong:
            print(f"  FAIL {len(wrong)} of {len(outcomes)} answers are wrong, such as {wrong[0]}", flush=True)


def _is_sustained(outcomes: Sequence[Outcome], bound_ms: float) -> bool:
    if any(outcome.reply.status != 200 for outcome in outcomes):
        return False
    quarter = max(1, len(outcomes) // 4)
    first, last = percentiles(outcomes[:quarter], 50)[0], percentiles(outcomes[-quarter:], 50)[0]
    return percentiles(outcomes, 99)[0] <= bound_ms and last <= 2 * first


def _recovered_s(outcomes: Sequence[Outcome], usual_ms: float, since: float) -> float:
    """Seconds from a time of the clock until ten requests in a row are all answered, on average nearly as quickly as usual."""
    for start in range(len(outcomes) - 10):
        window = outcomes[start : start + 10]
        answered = all(outcome.reply.status == 200 for outcome in window)
        if answered and _mean_ms(window) <= 1.25 * usual_ms:
            return window[0].due - since
    return float("inf")


def _mean_ms(outcomes: Sequence[Outcome]) -> float:
    """Of what was answered: photos and similar items take quite different times, so a median of both would say nothing."""
    return statistics.fmean(outcome.ms for outcome in outcomes if outcome.reply.status == 200)


def _errors(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.reply.status != 200 for outcome in outcomes)


def _statuses(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.reply.status for outcome in outcomes)
    return ", ".join(f"{count} × {status or 'no answer'}" for status, count in sorted(counts.items()))


def _reasons(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.reply.detail for outcome in outcomes if outcome.reply.status != 200)
    return "; ".join(f"{count} × {detail}" for detail, count in counts.most_common(6))


def _stored_events(log: Path) -> int:
    lines = (line for file in log.rglob("*.jsonl") for line in file.read_bytes().splitlines())
    return sum(json.loads(line)["kind"] == "tap" for line in lines)


def _median_ms(work: Callable[[Any], object], on: Sequence[Any], seconds: float) -> float:
    """The median milliseconds of some work, one after the other."""
    took, until, number = [], time.monotonic() + seconds, 0
    while time.monotonic() < until or len(took) < 3:
        began = time.perf_counter()
        work(on[number % len(on)])
        took.append(1000 * (time.perf_counter() - began))
        number += 1
    return statistics.median(took)


def _verdict(what: str, measured: float, target: float, unit: str, *, least: bool = False) -> None:
    good = measured >= target if least else measured <= target
    print(
        f"    {'PASS' if good else 'FAIL'} {what}: {measured:.2f} {unit} ({'≥' if least else '≤'} {target:g})",
        flush=True,
    )


if __name__ == "__main__":
    main()
