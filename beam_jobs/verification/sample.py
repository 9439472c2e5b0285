"""The sample of items that are searched for and searched with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_jobs.verification.config import Config
from listing_lens.lake.embeddings import embedding_matrix
from listing_lens.lake.records import SEARCHABLE
from models.sampling import sample_number

_SALT = "verify index"
# Rows drawn per item wanted: enough where one in twenty is searchable.
_DRAWN_PER_ITEM = 20


@dataclass(frozen=True)
class Sample:
    """Searchable items in random order: any first n of them are a sample.

    Attributes:
        item_ids, versions, image_uris: of each, (n,).
        vectors: their projected embeddings, (n, dims) float32.
    """

    item_ids: list[str]
    versions: list[int]
    image_uris: list[str]
    vectors: NDArray[np.float32]


def draw_sample(config: Config) -> Sample:
    """Rows at random offsets of the table; another verification of the same index and version draws the same.

    Of a table with hardly any searchable items, they are fewer than `Limits.drawn`.
    """
    table = config.embeddings.items.open(config.version)
    rng = np.random.default_rng(sample_number(_SALT, config.index.name))
    rows, wanted = table.count_rows(), config.limits.drawn
    offsets = rng.choice(rows, min(rows, wanted * _DRAWN_PER_ITEM), replace=False)
    status = table.take(offsets.tolist(), columns=["status"]).column("status").to_pylist()
    chosen = offsets[np.isin(status, [str(one) for one in SEARCHABLE])][:wanted]
    taken = table.take(chosen.tolist(), columns=["item_id", "version", "image_uri", "embedding"])
    projection = config.projection()
    vectors = [projection.apply(embedding_matrix(batch)) for batch in taken.to_batches()]
    return Sample(
        item_ids=taken.column("item_id").to_pylist(),
        versions=taken.column("version").to_pylist(),
        image_uris=taken.column("image_uri").to_pylist(),
        vectors=np.concatenate([np.empty((0, projection.dims), np.float32), *vectors]),
    )
