"""The embedder: an encoder and a projection that belong together. Its identity is the vector space."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

# The registered models: versions of the one are embedders, of the other the encoders that were fine-tuned for them. Two
# aliases name a version: the one that should serve, and the newest, which may be next.
MODEL = "listing-embedder"
ENCODER_MODEL = "listing-encoder"
CHAMPION = "champion"
CANDIDATE = "candidate"

# The tensors of an embedder that a server for models computes: prepared images (n, 3, h, w) uint8 in; out come unit vectors
# (n, dims) float32 and, with each of them, the name of its space (n, 1).
PIXELS, EMBEDDING, SPACE = "pixels", "embedding", "space"


class EmbedderCard(BaseModel):
    """Names an embedder so that it can be found and checked: what the registry, an index and a report carry.

    `encoder_source` says where the encoder is loaded from; `encoder_id` and `projection_id` are hashes of content, so a
    folder whose weights have changed since is noticed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder_source: str
    encoder_id: str
    encoder_dims: int = Field(gt=0)
    projection_id: str
    dims: int = Field(gt=0)

    @property
    def space(self) -> str:
        """The vector space: vectors of two spaces are never compared."""
        return f"{self.encoder_id}-pca{self.dims}-{self.projection_id}"
