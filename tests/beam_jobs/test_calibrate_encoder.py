"""Calibration: by a thousand photos that landed, no two the same, once for a space; every job then computes in its choice."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from small_siglip import save_siglip
from tiny import FIRST, SECOND, bounds, image_root, items_of, land, listing, photo, take_photo

from beam_jobs import calibrate_encoder, embed_listings
from beam_jobs.verification.config import least_cosine
from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.ledger import Ledger
from listing_lens.lake.pins import Pin, Pins
from listing_lens.lake.records import Status
from listing_lens.lake.windows import Lake
from models.encoders.backends import save_backend
from models.encoders.calibration import COMPARED, LEAST_IMAGES
from models.encoders.encoder import Encoder, shared_encoder
from models.encoders.files import identify
from models.encoders.runtime import Backend
from models.encoders.trials import Calibration
from models.images import ImageLimits, decode_image


def land_photos(lake: Lake, count: int) -> None:
    """Two windows: in the newer one fifty listings, of which some are sold, broken or copies; so many photos in all."""
    root = Path(image_root(lake))
    root.mkdir(parents=True)
    for n in range(count):
        (root / f"{n}.jpg").write_bytes(photo(n))
    (root / "broken.jpg").write_bytes(b"no photo")
    odd = [
        *(listing(f"broken{n}", SECOND, image_uri="broken.jpg") for n in range(5)),
        *(listing(f"copy{n}", SECOND, image_uri="0.jpg") for n in range(5)),
        *(listing(f"sold{n}", SECOND, image_uri=f"{n}.jpg", status=Status.SOLD) for n in range(5)),
    ]
    land(lake, SECOND, [*odd, *(listing(f"i{n}", SECOND, image_uri=f"{n}.jpg") for n in range(35))])
    land(lake, FIRST, [listing(f"i{n}", image_uri=f"{n}.jpg") for n in range(35, count)])


@pytest.fixture
def small(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small encoder by LENS_ENCODER, and its id."""
    folder = save_siglip(tmp_path / "siglip")
    monkeypatch.setenv("LENS_ENCODER", str(folder))
    monkeypatch.setenv("LENS_ENCODER_BATCH_SIZE", "50")
    return identify(str(folder))


class TestCalibration:
    def test_pins_what_it_chose_with_its_trials(
        self, lake: Lake, small: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        land_photos(lake, LEAST_IMAGES)
        monkeypatch.setenv("LENS_ENCODER_BACKENDS", '["bfloat16"]')
        with caplog.at_level(logging.INFO):
            calibrate_encoder.main([])
        pin = Pins(Embeddings(lake, small)).get()
        assert pin is not None
        assert f"{small} is computed in {pin.backend} from now on" in caplog.text
        calibration = pin.calibration
        assert (calibration.encoder_id, calibration.images) == (small, COMPARED)
        by_backend = {trial.backend: trial for trial in calibration.trials}
        assert list(by_backend) == ["float32", "bfloat16"]
        # Which is faster, the host decides.
        assert by_backend[pin.backend].accepted
        assert (pin.files is None) == (pin.backend is Backend.FLOAT32)
        with pytest.raises(LensError, match=f"{small} is computed in {pin.backend} since 20"):
            calibrate_encoder.main([])
        assert Pins(Embeddings(lake, small)).get() == pin

    def test_by_too_few_photos_pins_nothing(self, lake: Lake, small: str) -> None:
        land_photos(lake, 60)
        with pytest.raises(LensError, match=f"chosen by {LEAST_IMAGES} photos, and there are 60: land more listings"):
            calibrate_encoder.main([])
        assert Pins(Embeddings(lake, small)).get() is None

    def test_of_thumbnails_is_refused(self, lake: Lake) -> None:
        with pytest.raises(LensError, match="encoder 'pixels:4' has no network, so there is nothing to choose"):
            calibrate_encoder.main(["--encoder", "pixels:4"])


@pytest.mark.parametrize(
    ("backend", "least"), [("float32", 0.9999), ("openvino-float32", 0.9999), ("openvino-int8", 0.9)]
)
def test_a_verification_allows_for_float32_beside_fewer_bits(backend: str, least: float) -> None:
    chosen = Calibration(encoder_id="e", host="a", images=1000, chosen=Backend(backend), trials=())
    pin = Pin(backend=Backend(backend), files=None, calibration=chosen, pinned_at=datetime.now(UTC))
    assert least_cosine(pin) == least
    assert least_cosine(None) == 0.9999


class TestEmbedding:
    """What a run computes in, and what the ledger says of it."""

    @pytest.fixture
    def pin(self, lake: Lake, encoder_id: str, untrained_siglip: Path, tmp_path: Path) -> Pin:
        encoder = shared_encoder(str(untrained_siglip))
        folder = tmp_path / "made"
        folder.mkdir()
        save_backend(encoder, Backend.BFLOAT16, np.zeros((0,), np.uint8), folder)
        chosen = Calibration(encoder_id=encoder_id, host="a", images=1000, chosen=Backend.BFLOAT16, trials=())
        return Pins(Embeddings(lake, encoder_id)).create(chosen, folder, datetime.now(UTC))

    def run(self, lake: Lake, encoder_id: str) -> tuple[dict[str, object], set[str]]:
        """Embed a photo: the ledger's parameters, and the backends in the table."""
        take_photo(lake, "a.jpg", 1)
        land(lake, FIRST, [listing("a")])
        embed_listings.main(bounds(FIRST))
        line = Ledger(Embeddings(lake, encoder_id)).lines()[FIRST]
        return dict(line.parameters), {row["backend"] for row in items_of(lake, encoder_id).values()}

    def test_is_in_the_backend_that_is_pinned(self, lake: Lake, encoder_id: str, pin: Pin) -> None:
        parameters, backends = self.run(lake, encoder_id)
        assert backends == {"bfloat16"}
        assert parameters["backend"] == "bfloat16"
        [host] = parameters["hosts"]  # type: ignore[misc]
        assert (host["backend"], host["refusal"]) == ("bfloat16", None)

    def test_is_in_float32_on_a_host_that_cannot_run_it_which_is_recorded(
        self, lake: Lake, encoder_id: str, pin: Pin
    ) -> None:
        assert pin.files is not None
        Path(Pins(Embeddings(lake, encoder_id)).files_of(pin.files), "probes.safetensors").unlink()
        parameters, backends = self.run(lake, encoder_id)
        assert backends == {"float32"}
        assert parameters["backend"] == "bfloat16"
        [host] = parameters["hosts"]  # type: ignore[misc]
        assert host["backend"] == "float32"
        assert "probes.safetensors cannot be read" in host["refusal"]

    def test_is_in_float32_without_a_pin_and_says_why_there_is_none(
        self, lake: Lake, encoder_id: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("LENS_ENCODER_BACKENDS", '["float32", "openvino-int8"]')
        with caplog.at_level(logging.WARNING):
            parameters, backends = self.run(lake, encoder_id)
        assert backends == {parameters["backend"]} == {"float32"}
        assert (
            f"{encoder_id} is embedded in float32: a backend is chosen by {LEAST_IMAGES} photos, and there are 1"
            in (caplog.text)
        )

    def test_a_photo_has_the_embedding_that_the_encoder_gives(
        self, lake: Lake, encoder_id: str, untrained_siglip: Path, pin: Pin
    ) -> None:
        self.run(lake, encoder_id)
        encoder = Encoder.load(str(untrained_siglip))
        image = decode_image(photo(1), ImageLimits(10**9, 10**9), min_side=encoder.image_side)
        kept = items_of(lake, encoder_id)["a"]["embedding"]
        assert kept @ encoder.embed([image])[0] > 0.999
