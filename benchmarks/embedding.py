"""The embedding job against its encoder alone: the overhead of fetching, decoding, preprocessing, Beam and the lake.

    python -m benchmarks.embedding                       # SigLIP base/16-256, random weights, 1440×1080 JPEGs
    python -m benchmarks.embedding --encoder google/siglip-base-patch16-256-multilingual --device cuda --images 4096

Both embed the same images, alternating, with the same batch size and number of threads. The peer is a bare loop over decoded
images: transformers' processor and model, in float32. The job reads JPEG files, decodes them and merges them into a table of
the lake; it runs in float32, where the ratio shows the pipeline's overhead, and in each backend that the device has, where it
shows what a user gets whose calibration chooses it: whether it may is not asked here. Models are loaded, and backends are made,
before anything is timed.

The last line is decoding and preprocessing alone: the job's implementation against Pillow's full decoding and bicubic scaling.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import numpy as np
import torch
import transformers
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from beam_jobs.embed_listings import Config, configure, run
from listing_lens.lake.ledger import Ledger
from listing_lens.lake.pins import Pin, Pins
from listing_lens.lake.records import LISTING_SCHEMA, Listing, Status, to_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, Lake
from models.encoders.backends import save_backend
from models.encoders.encoder import shared_encoder
from models.encoders.runtime import Backend, Runtime
from models.encoders.trials import Calibration
from models.images import ImageLimits, decode_image

DAY = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
_SIZE = (1440, 1080)


def main() -> None:
    """Alternate between all of them, so that changes in the machine's speed affect all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="default: SigLIP base/16-256 with random weights")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = given.encoder or str(save_siglip_base(folder / "siglip-base-patch16-256"))
        photos = write_photos(folder / "photos", given.images)
        os.environ |= {
            "LENS_LAKE": str(folder / "lake"),
            "LENS_HOME": str(folder / "home"),
            "LENS_CACHE": str(folder / "cache"),
            "LENS_ENCODER": source,
            "LENS_ENCODER_BATCH_SIZE": str(given.batch),
            "LENS_ENCODER_DEVICE": given.device,
            "LENS_BEAM_RUNNER": "FnApiRunner",
        }
        land(Lake(str(folder / "lake")), photos)
        compare(source, photos, given.batch, given.runs, given.device)
        compare_decoding(photos, source, given.runs)


def compare(source: str, photos: list[Path], batch: int, runs: int, device: str) -> None:
    """Print images/s of the bare loop and of the job in each backend, and their ratios."""
    # Neither uses the text tower, which takes most of the memory of some models.
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    decoded = [Image.open(photo).convert("RGB") for photo in photos]

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, len(decoded), batch):
                pixels = processor(images=decoded[start : start + batch], return_tensors="pt")["pixel_values"]
                model.get_image_features(pixel_values=pixels.to(device)).pooler_output.cpu()

    backends = [Backend.BFLOAT16] if device == "cuda" else [Backend.OPENVINO, Backend.OPENVINO_INT8]
    jobs = {backend: job(pinned(source, backend, decoded)) for backend in (Backend.FLOAT32, *backends)}
    candidates: dict[str, Callable[[], float]] = {"bare": lambda: seconds_of(bare)} | jobs
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(runs + 1):
        for name, candidate in candidates.items():
            seconds = candidate()
            # The first round loads and warms up.
            if turn:
                times[name].append(seconds)
    speeds = {name: len(photos) / statistics.median(values) for name, values in times.items()}
    print(
        f"{len(photos)} JPEGs of {_SIZE[0]}×{_SIZE[1]}, batch {batch}, {torch.get_num_threads()} threads, median of {runs}"
    )
    print(f"  bare loop, transformers {transformers.__version__} float32: {speeds['bare']:.2f} images/s")
    for backend in jobs:
        print(f"  the job in {backend}: {speeds[backend]:.2f} images/s, ratio {speeds[backend] / speeds['bare']:.2f}")


def compare_decoding(photos: list[Path], source: str, runs: int) -> None:
    """Print images/s of decoding and preprocessing on one thread, ours and Pillow's full decoding with bicubic scaling."""
    encoder = shared_encoder(source, Runtime("cpu"))
    limits = ImageLimits(10**9, 10**9)
    encoded = [photo.read_bytes() for photo in photos]
    side = encoder.image_side

    def ours() -> None:
        for data in encoded:
            encoder.prepare(decode_image(data, limits, min_side=side))

    def full() -> None:
        for data in encoded:
            image = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            np.asarray(image).transpose(2, 0, 1)

    times: dict[str, list[float]] = {"ours": [], "full": []}
    for _ in range(max(runs, 5)):
        for name, candidate in (("ours", ours), ("full", full)):
            times[name].append(seconds_of(candidate))
    speeds = {name: len(encoded) / statistics.median(values) for name, values in times.items()}
    print(
        f"  decode and prepare, one thread: {speeds['ours']:.0f} images/s; Pillow in full, bicubic: {speeds['full']:.0f}; "
        f"ratio {speeds['ours'] / speeds['full']:.2f}"
    )


def save_siglip_base(folder: Path) -> Path:
    """An encoder with the config of google/siglip-base-patch16-256, random weights and a minimal text tower."""
    config = SiglipConfig(
        text_config={"vocab_size": 64, "num_hidden_layers": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        vision_config={"image_size": 256, "patch_size": 16},
    )
    torch.manual_seed(0)
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 256, "width": 256}).save_pretrained(folder)
    return folder


def write_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs with soft shapes and sensor noise, with about the file size of a phone photo at that resolution."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    paths = [folder / f"{n:05d}.jpg" for n in range(count)]
    for path in paths:
        shades = Image.fromarray(chance.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            _SIZE, Image.Resampling.BICUBIC
        )
        noise = chance.normal(0, 6, (_SIZE[1], _SIZE[0], 1)).astype(np.float32)
        Image.fromarray(np.clip(np.asarray(shades) + noise, 0, 255).astype(np.uint8)).save(path, "JPEG", quality=85)
    return paths


def land(lake: Lake, photos: list[Path]) -> None:
    """A window with one listing per photo."""
    moment = DAY.start + timedelta(minutes=1)
    listings = [
        Listing(photo.stem, photo.stem, ("A",), 100, photo.name, Status.ON_SALE, moment, moment) for photo in photos
    ]
    lake.write_table(LISTINGS, DAY, to_table(listings, LISTING_SCHEMA), DAY.end, image_root=str(photos[0].parent))


def pinned(source: str, backend: Backend, photos: list[Image.Image]) -> Config:
    """The job of the window, in a backend that is quantised by some photos."""
    config = configure({DAY: [DAY]}, source)
    embeddings = config.embedding.embeddings
    if backend is Backend.FLOAT32:
        return config
    encoder = shared_encoder(source, config.embedding.runtime)
    folder = Path(Pins(embeddings).files_of(backend))
    folder.mkdir(parents=True)
    save_backend(encoder, backend, np.stack([encoder.prepare(photo) for photo in photos]), folder)
    nothing = Calibration(encoder_id=encoder.encoder_id, host="", images=0, chosen=backend, trials=())
    pin = Pin(backend=backend, files=backend, calibration=nothing, pinned_at=DAY.end)
    return replace(config, embedding=replace(config.embedding, pin=pin))


def job(config: Config) -> Callable[[], float]:
    """A run of the embedding job, as if for the first time; it tells its seconds."""

    def embed() -> float:
        embeddings = config.embedding.embeddings
        for table in embeddings.tables:
            config.lake.remove_folder(table.path)
        # Photos are embedded once in an attempt.
        attempt = Lake.new_attempt(datetime.now(UTC))
        mine = replace(
            config, embedding=replace(config.embedding, stage=replace(config.stage, attempt=attempt), version=None)
        )
        Ledger(embeddings).begin(mine.windows, attempt, mine.embedding.now)
        start = time.perf_counter()
        with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
            run(pipeline | beam.Create(mine.parts), mine)
        return time.perf_counter() - start

    return embed


def seconds_of(run: Callable[[], None]) -> float:
    """The time of a run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
