"""People who take photos: each has a place, a light, a phone and habits."""

from __future__ import annotations

from dataclasses import dataclass

from listing_lens.demo.chance import generator, pick, weighted
from listing_lens.demo.photos.backgrounds import BACKGROUNDS

_COMMON = {"wood": 3.0, "sheet": 3.0, "table": 4.0, "carpet": 2.0, "wall": 2.0, "grass": 0.5, "gingham": 0.7}


@dataclass(frozen=True, slots=True)
class Photographer:
    """A seller, or a buyer who searches with a photo: what all their photos share."""

    photographer_id: str
    background: str
    # Gains of red, green and blue under their light.
    cast: tuple[float, float, float]
    # 1 is well exposed.
    exposure: float
    # How much darker the far corner is, 0 to 1.
    falloff: float
    # Degrees in which the light comes from.
    light_from: float
    # Standard deviation of the sensor's noise, of 255.
    noise: float
    # Share of photos that are a little out of focus.
    blurry: float
    # How much of the frame the product takes, about, where it fits the tightest.
    closeness: float
    # Width over height of their photos, held upright or not.
    aspect: float
    portrait: bool
    long_edge: int
    quality: int
    # Share of photos stored turned, with an EXIF tag that says so.
    turned: float
    # Share of photos with something else in them.
    clutter: float
    # How crooked: standard deviation of the rotation, in degrees.
    crooked: float


def make_photographer(seed: int, name: str) -> Photographer:
    rng = generator(seed, "photographer", name)
    warm = rng.normal(0, 0.07)
    names = list(BACKGROUNDS)
    return Photographer(
        photographer_id=name,
        background=weighted(rng, names, [_COMMON.get(name, 1.0) for name in names]),
        cast=(float(1 + warm), float(1 + rng.normal(0, 0.015)), float(1 - warm)),
        exposure=float(rng.uniform(0.8, 1.1)),
        falloff=float(rng.uniform(0.05, 0.45)),
        light_from=float(rng.uniform(0, 360)),
        noise=float(rng.choice([1.5, 3, 5, 8], p=[0.35, 0.35, 0.2, 0.1])),
        blurry=float(rng.uniform(0, 0.3)),
        closeness=float(rng.uniform(0.55, 1.0)),
        aspect=pick(rng, (4 / 3, 4 / 3, 1.0, 1.0, 16 / 9)),
        portrait=bool(rng.random() < 0.6),
        long_edge=weighted(rng, (640, 720, 800, 960, 1080, 1280, 1440), (4, 5, 4, 3, 2, 1, 1)),
        quality=int(rng.integers(55, 96)),
        turned=float(rng.choice([0, 0, 0.3, 0.9])),
        clutter=float(rng.uniform(0, 0.4)),
        crooked=float(rng.uniform(2, 12)),
    )
