"""From a listing's event to a search that finds it: how long, and how much of it the refresh of the index is.

    python -m benchmarks.fresh_listings --events 50 --per_second 1

The service (`lens serve`) and an Elasticsearch node are processes of their own. Each event is a listing with a photo that no
other has: the photo is kept, the listing put, and the newest listings are searched for until it is among them; then its photo
must find it. The peer is the node itself: a document is written to the same index without the service, and searched for until
it is found.
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
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from benchmarks.node import node
from listing_lens.lake.fits import save_projection
from listing_lens.lake.windows import Lake
from listing_lens.search.index import Index, SearchIndex
from listing_lens.settings import load_settings
from listing_lens.stack.ports import choose_port
from models.embedder import EmbedderCard
from models.encoders.encoder import shared_encoder
from models.encoders.small_siglip import save_untrained_siglip
from models.moments import Moments
from models.projection import fit_projection

_KEY = "benchmark"
_POLL_S = 0.1
_PATIENCE_S = 60.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=50)
    arguments.add_argument("--per_second", type=float, default=1.0)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, node(Path(folder, "node")) as url:
        os.environ |= {
            "LENS_HOME": f"{folder}/home",
            "LENS_LAKE": f"{folder}/lake",
            "LENS_ELASTICSEARCH_URL": url,
            "LENS_SEARCH_KEYS": json.dumps({"benchmark": sha256(_KEY.encode()).hexdigest()}),
            "LENS_SEARCH_RATES": json.dumps({"search": "", "similar": "", "photos": ""}),
        }
        index = _make_index(Path(folder))
        port = choose_port([])
        service = subprocess.Popen([sys.executable, "-m", "listing_lens.cli", "serve", "--port", str(port)])
        try:
            _measure(f"http://127.0.0.1:{port}", url, index, options.events, options.per_second)
        finally:
            service.terminate()
            service.wait()


def _make_index(folder: Path) -> Index:
    """An empty index that is live, of a small encoder's space."""
    settings = load_settings()
    source = str(save_untrained_siglip(folder / "encoder"))
    encoder = shared_encoder(source)
    rows = encoder.embed([Image.open(io.BytesIO(_photo(seed))).convert("RGB") for seed in range(1000, 1300)])
    projection = fit_projection(Moments.of(rows), 32)
    save_projection(Lake(settings.lake), projection)
    card = EmbedderCard(
        encoder_source=source,
        encoder_id=encoder.encoder_id,
        encoder_dims=encoder.dims,
        projection_id=projection.projection_id,
        dims=32,
    )
    search_index = SearchIndex.connect(settings)
    index = search_index.create(card, "one")
    search_index.finish_load(index.name)
    search_index.swap(index.name)
    return index


def _measure(service: str, node_url: str, index: Index, events: int, per_second: float) -> None:
    with httpx.Client(base_url=service, headers={"Authorization": f"Bearer {_KEY}"}, timeout=_PATIENCE_S) as client:
        _wait_until_ready(client)
        # The first listing has the indexer load its encoder.
        _tell_and_find(client, 0)
        with ThreadPoolExecutor(16) as pool:
            begun, told, peers = time.perf_counter(), [], []
            for number in range(1, events + 1):
                time.sleep(max(0.0, begun + number / per_second - time.perf_counter()))
                told.append(pool.submit(_tell_and_find, client, number))
                peers.append(pool.submit(_write_and_find, node_url, index, number))
            answered, found = zip(*(one.result() for one in told), strict=True)
            bare = [one.result() for one in peers]
        written = _mean(client, "lens_indexing_seconds")
    print(f"{events} events, {per_second:g} a second; seconds, median and 95th percentile")
    for what, seconds in (("answered", answered), ("found", found), ("peer: written and found", bare)):
        print(f"  {what:<26}{statistics.median(seconds):.2f}  {statistics.quantiles(seconds, n=20)[-1]:.2f}")
    print(f"  taken until written, mean {written:.2f}")
    print(f"  found / peer              {statistics.median(found) / statistics.median(bare):.2f}")


def _wait_until_ready(client: httpx.Client) -> None:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            if client.get("/health/ready").is_success:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > until:
            sys.exit("the service is not ready")
        time.sleep(0.1)


def _tell_and_find(client: httpx.Client, number: int) -> tuple[float, float]:
    """Seconds until a listing is taken, and until a search finds it."""
    photo, item_id = _photo(number), f"fresh-{number}"
    begun = time.perf_counter()
    address = client.post("/photos", content=photo).raise_for_status().json()["image_uri"]
    told = {"title": "a bag", "price": 100, "image_uri": address}
    client.put(f"/listings/{item_id}", json=told).raise_for_status()
    answered = time.perf_counter() - begun
    while item_id not in _ids(client.get("/items", params={"k": 50})):
        time.sleep(_POLL_S)
    found = time.perf_counter() - begun
    if _ids(client.post("/search", params={"k": 1, "keep": False}, content=photo)) != [item_id]:
        sys.exit(f"the photo of {item_id} does not find it")
    return answered, found


def _ids(answer: httpx.Response) -> list[str]:
    return [one["item_id"] for one in answer.raise_for_status().json()["results"]]


def _write_and_find(node_url: str, index: Index, number: int) -> float:
    """Seconds until a document without a vector is written and found, without the service."""
    item_id = f"peer-{number}"
    with httpx.Client(base_url=node_url, timeout=_PATIENCE_S) as client:
        begun = time.perf_counter()
        document = {"item_id": item_id, "title": "a bag", "price": 100, "status": "sold"}
        client.put(f"/{index.name}/_doc/{item_id}", json=document).raise_for_status()
        query = {"query": {"term": {"item_id": item_id}}}
        while not client.post(f"/{index.name}/_search", json=query).raise_for_status().json()["hits"]["hits"]:
            time.sleep(_POLL_S)
        return time.perf_counter() - begun


def _mean(client: httpx.Client, histogram: str) -> float:
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    return float(lines[f"{histogram}_sum"]) / float(lines[f"{histogram}_count"])


def _photo(seed: int) -> bytes:
    tiles = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(np.kron(tiles, np.ones((80, 80, 1), np.uint8))).save(data, "JPEG", quality=90)
    return data.getvalue()


if __name__ == "__main__":
    main()
