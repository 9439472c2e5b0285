"""Choose the backend of an encoder's space, once, by photos of the catalog, and pin it in the lake.

A sample of the newest listings' photos is computed by every backend of LENS_ENCODER_BACKENDS; by all there are, if it names
float32 alone. The fastest is pinned, of those whose embeddings have at least 99% of the 10 nearest neighbours of float32's;
from then on, every job computes the space's embeddings in it. Run it on a host like those that embed: speed is measured here.
`embed_listings` does the same before it embeds by an encoder without a pin, if LENS_ENCODER_BACKENDS offers a choice.

    python -m beam_jobs.calibrate_encoder
    LENS_ENCODER_BACKENDS='["openvino-int8"]' python -m beam_jobs.calibrate_encoder --encoder models:/listing-encoder@candidate
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_jobs.launcher import launch, parser
from beam_jobs.transforms.image_loader import ImageLoader, Unusable
from beam_jobs.transforms.windows import Landed, image_roots, landed_listings
from listing_lens import progress
from listing_lens.embedding.sources import encoder_runtime, resolve_encoder
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.pins import Pin, Pins
from listing_lens.lake.records import Refused
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.settings import Settings, load_settings
from models.encoders.calibration import LEAST_IMAGES, calibrate
from models.encoders.encoder import Encoder, shared_encoder
from models.encoders.runtime import Backend
from models.sampling import sample_number

logger = logging.getLogger(__name__)

_SALT = "calibrate encoder"
# Addresses that are tried for each photo that is needed: some cannot be read, and some show the same.
_SPARE = 2
_READ_TOGETHER = 64


@dataclass(frozen=True)
class Config:
    """One calibration.

    Attributes:
        encoder: the reference, in float32.
        backends: what is chosen from.
        landed: the windows that photos are taken from, the newest first.
    """

    pins: Pins
    encoder: Encoder
    backends: tuple[Backend, ...]
    batch_size: int
    landed: tuple[Landed, ...]
    images: ImageSource

    @property
    def lake(self) -> Lake:
        return self.pins.embeddings.lake


def run(config: Config) -> Pin:
    """Calibrate and pin, unless another process is faster. Returns the pin.

    Raises:
        LensError: there are too few photos.
    """
    photos = _photos(config)
    advance = partial(_advance, total=len(photos))
    with TemporaryDirectory() as scratch:
        calibration = calibrate(
            config.encoder, config.backends, photos, config.batch_size, Path(scratch), time.perf_counter, advance
        )
        logger.info("calibrated: %s", calibration.model_dump_json())
        pin = config.pins.create(calibration, Path(scratch, calibration.chosen), datetime.now(UTC))
    logger.info("%s is computed in %s from now on, pinned at %s", config.encoder.encoder_id, pin.backend, pin.pinned_at)
    return pin


def _advance(images: int, total: int) -> None:
    progress.advance("compared", images, total)


def _photos(config: Config) -> NDArray[Any]:
    """Prepared photos of a sample of the newest listings, no two the same: (at most LEAST_IMAGES, …)."""
    found: dict[bytes, NDArray[Any]] = {}
    loader = ImageLoader(config.images, config.encoder.image_side)
    uris = _newest_photos(config)
    while len(found) < LEAST_IMAGES and (some := list(islice(uris, _READ_TOGETHER))):
        for image in loader.load(some):
            if not isinstance(image, Unusable):
                prepared = config.encoder.prepare(image)
                found.setdefault(blake2b(prepared.tobytes(), digest_size=16).digest(), prepared)
        progress.advance("photos", len(some))
    return np.stack(list(found.values())[:LEAST_IMAGES]) if found else np.empty((0,))


def _newest_photos(config: Config) -> Iterator[str]:
    """Addresses of photos: a sample of the newest window, then of the one before."""
    seen: set[str] = set()
    for landed in config.landed:
        for _, uri in heapq.nsmallest(_SPARE * LEAST_IMAGES, _numbered(config.lake, landed)):
            if uri not in seen:
                seen.add(uri)
                yield uri


def _numbered(lake: Lake, landed: Landed) -> Iterator[tuple[int, str]]:
    for listing in landed_listings(lake, landed, landed.window):
        if not isinstance(listing, Refused) and listing.searchable:
            yield sample_number(_SALT, listing.item_id), listing.image_uri


def configure(encoder_source: str | None, settings: Settings) -> Config:
    """Find what is calibrated, and by which photos.

    Args:
        encoder_source: the encoder; None means LENS_ENCODER.
        settings: name the lake, the backends and which photos may be read.

    Raises:
        LensError: the encoder is unknown or has no network, or the lake cannot be reached.
    """
    lake = Lake(settings.lake)
    lake.check()
    encoder = shared_encoder(resolve_encoder(encoder_source, settings), encoder_runtime(settings))
    if encoder.network is None:
        raise LensError(f"encoder {encoder.source!r} has no network, so there is nothing to choose for it")
    only_float32 = set(settings.encoder_backends) == {Backend.FLOAT32}
    windows = sorted(lake.windows(LISTINGS), key=lambda window: (window.end, window.start), reverse=True)
    landed = Landed.find(lake, LISTINGS, windows)
    return Config(
        pins=Pins(Embeddings(lake, encoder.encoder_id)),
        encoder=encoder,
        # Who asks for a choice wants one.
        backends=tuple(Backend) if only_float32 else settings.encoder_backends,
        batch_size=settings.encoder_batch_size,
        landed=landed,
        images=ImageSource.of(settings).allowing(image_roots(landed)),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, and calibrate unless there is a pin."""
    arguments = parser(__doc__)
    arguments.add_argument("--encoder", metavar="SOURCE", help="the encoder (default: LENS_ENCODER)")
    known = arguments.parse_args(argv)
    config = configure(known.encoder, load_settings())
    if pin := config.pins.get():
        raise LensError(
            f"{config.encoder.encoder_id} is computed in {pin.backend} since {pin.pinned_at:%Y-%m-%d}: "
            + (
                f"remove {config.pins.path} to choose anew"
                if pin.backend is Backend.FLOAT32
                else "its space stays in one backend; an encoder of another id can be given another"
            )
        )
    run(config)


if __name__ == "__main__":
    launch(main)
