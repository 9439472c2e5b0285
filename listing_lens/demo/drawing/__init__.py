"""Draws a product from its parameters."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from listing_lens.demo.drawing import bags, electronics, fashion, hobby, home, toys
from listing_lens.demo.drawing.sketch import Sketch
from listing_lens.demo.product import Product

DRAWINGS: dict[str, Callable[[Sketch], None]] = {
    **fashion.DRAWINGS,
    **bags.DRAWINGS,
    **home.DRAWINGS,
    **toys.DRAWINGS,
    **hobby.DRAWINGS,
    **electronics.DRAWINGS,
}


def draw(product: Product) -> Image.Image:
    """The product alone: a square RGBA image, transparent around it, the same for equal products."""
    sketch = Sketch(product)
    DRAWINGS[product.kind](sketch)
    return sketch.finish()
