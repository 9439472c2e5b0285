"""What an encoder costs: counted by hand, and timed by a clock of the test's own."""

from __future__ import annotations

from itertools import count

import pytest
from PIL import Image
from tiny_training import DIMS, SIDE, save_siglip

from models.encoders.cost import measure_cost
from models.encoders.encoder import Encoder

IMAGES = [Image.new("RGB", (20 + n, 30)) for n in range(3)]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.load(str(save_siglip(tmp_path_factory.mktemp("cost") / "siglip")))


def test_operations_are_those_of_the_layers(siglip: Encoder) -> None:
    found = measure_cost(siglip, IMAGES, count().__next__, batches=(2,))
    patches, mlp, layers = (SIDE // 8) ** 2, 64, 2
    products = patches * 3 * 8 * 8 * DIMS
    products += layers * patches * (4 * DIMS * DIMS + 2 * DIMS * mlp)
    # Attention: scores, and their use as weights.
    products += layers * 2 * patches * patches * DIMS
    # The head that pools: one query attends to all patches.
    products += (2 * patches + 2) * DIMS * DIMS + 2 * patches * DIMS + 2 * DIMS * mlp
    assert found.gflop == pytest.approx(2 * products / 1e9)
    tower = siglip.network.tower if siglip.network else None
    assert tower is not None
    assert found.parameters == sum(weights.numel() for weights in tower.parameters())


def test_the_plain_baseline_has_no_network() -> None:
    found = measure_cost(Encoder.load("pixels:4"), IMAGES, count().__next__, batches=(2,))
    assert (found.parameters, found.gflop, found.device) == (0, 0, "cpu")


def test_the_batch_that_takes_the_least_time_per_image_is_found_by_growing_it() -> None:
    """A pass takes ten milliseconds, and half a millisecond more per image; three for each beyond 32."""
    encoder = Encoder.load("pixels:4")
    sizes: list[int] = []

    class Slow:
        """The encoder, which tells the clock how long it takes."""

        now = 0.0
        network, device = None, encoder.device

        def embed(self, images: list[Image.Image]) -> object:
            sizes.append(len(images))
            Slow.now += 0.01 + 0.0005 * min(len(images), 32) + 0.003 * max(len(images) - 32, 0)
            return encoder.embed(images)

    found = measure_cost(Slow(), IMAGES, lambda: Slow.now, batches=(8, 32, 64, 128))  # type: ignore[arg-type]
    assert (found.single.batch, found.batched.batch) == (1, 32)
    assert (found.single.p50_ms, found.single.p99_ms) == pytest.approx((10.5, 10.5))
    assert found.batched.p50_ms == pytest.approx((10 + 16) / 32)
    assert found.single.rounds == 100
    # It got no better with 64.
    assert max(sizes) == 64
