"""Loading embedders by their cards, and checking that the encoder and the projection are the ones named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from listing_lens.errors import LensError
from listing_lens.lake.fits import load_projection
from listing_lens.lake.windows import Lake
from models.embedder import EmbedderCard
from models.encoders.encoder import Encoder, shared_encoder
from models.encoders.runtime import DEFAULT_RUNTIME, Runtime
from models.encoders.texts import TextEncoder, require_text_encoder
from models.projection import Projection


def require_encoder(source: str, encoder_id: str, runtime: Runtime = DEFAULT_RUNTIME) -> Encoder:
    """The process's shared copy of an encoder, checked to have this id.

    Raises:
        LensError: it cannot be loaded, or the source now points to a different one.
    """
    encoder = shared_encoder(source, runtime)
    if encoder.encoder_id != encoder_id:
        raise LensError(
            f"encoder {source!r} is now {encoder.encoder_id}, but {encoder_id} is needed: "
            "restore its weights, or embed the catalog and rebuild the index with the new encoder"
        )
    return encoder


@dataclass(frozen=True)
class Embedder:
    """The encoder and projection of a space: turns images into vectors to search its indexes with."""

    encoder: Encoder
    projection: Projection

    @classmethod
    def load(cls, card: EmbedderCard, lake: Lake, runtime: Runtime = DEFAULT_RUNTIME) -> Embedder:
        """Load the encoder and projection that a card names.

        Raises:
            LensError: one of them is missing, or is not the one that the card names.
        """
        encoder = require_encoder(card.encoder_source, card.encoder_id, runtime)
        return cls(encoder, load_projection(lake, card.projection_id, card.encoder_id))

    def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """RGB images → unit vectors (n, dims)."""
        return self.projection.apply(self.encoder.embed(images))


@dataclass(frozen=True)
class TextEmbedder:
    """The text tower and projection of a space: turns what is written into vectors to search its indexes with."""

    encoder: TextEncoder
    projection: Projection

    @classmethod
    def load(cls, card: EmbedderCard, lake: Lake, runtime: Runtime = DEFAULT_RUNTIME) -> TextEmbedder:
        """Load the text tower and projection that a card names.

        Raises:
            LensError: one of them is missing, or is not the one that the card names.
        """
        encoder = require_text_encoder(card.encoder_source, card.encoder_id, runtime)
        return cls(encoder, load_projection(lake, card.projection_id, card.encoder_id))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts → unit vectors (n, dims)."""
        return self.projection.apply(self.encoder.embed(texts))
