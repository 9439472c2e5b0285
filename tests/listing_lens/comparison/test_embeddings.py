"""Embeddings that are kept: the same as computed, by content, whatever else happens to the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import photo

from listing_lens.comparison.embeddings import EmbeddingCache, Vectors, embed_photos
from models.encoders.encoder import Encoder
from models.images import ImageLimits

LIMITS = ImageLimits(10**7, 10**7)


class Counting(Encoder):
    """Plain pixels that count the images they embed."""

    @classmethod
    def of(cls, side: int) -> Counting:
        encoder = Encoder.load(f"pixels:{side}")
        made = cls(encoder.source, encoder.encoder_id, encoder.dims, encoder.image_side, encoder.prepare)
        object.__setattr__(made, "count", 0)
        return made

    def embed(self, images):  # type: ignore[no-untyped-def]
        object.__setattr__(self, "count", self.count + len(images))  # type: ignore[attr-defined]
        return super().embed(images)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "kept")


def embed(cache: EmbeddingCache | None, photos: dict[str, bytes], *encoders: Encoder) -> list[Vectors]:
    return embed_photos(photos.items(), encoders, LIMITS, cache, batch_size=3, advance=lambda count: None)


PHOTOS = {f"n{n}": photo(n % 5) for n in range(7)}


def test_a_photo_is_embedded_once_whatever_it_is_called(cache: EmbeddingCache) -> None:
    encoder = Counting.of(4)
    [found] = embed(cache, PHOTOS, encoder)
    [again] = embed(cache, {"other": photo(3), "new": photo(9)}, encoder)
    assert encoder.count == 6  # type: ignore[attr-defined]
    assert list(found) == list(PHOTOS)
    np.testing.assert_array_equal(again["other"], found["n3"])


def test_each_encoder_has_its_own_and_one_more_embeds_alone(cache: EmbeddingCache) -> None:
    first, second = Counting.of(4), Counting.of(2)
    [before] = embed(cache, PHOTOS, first)
    after, other = embed(cache, PHOTOS, first, second)
    assert (first.count, second.count) == (5, 5)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(after["n1"], before["n1"])
    assert other["n1"].shape == (12,)


def test_without_a_cache_nothing_is_kept(cache: EmbeddingCache, tmp_path: Path) -> None:
    embed(None, PHOTOS, Counting.of(4))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_photo_is_absent(cache: EmbeddingCache) -> None:
    [found] = embed(cache, {"broken": b"<html>", "whole": photo(1), "nothing": b""}, Counting.of(4))
    assert list(found) == ["whole"]


def test_a_file_that_is_not_whole_counts_as_absent(cache: EmbeddingCache, tmp_path: Path) -> None:
    encoder = Counting.of(4)
    embed(cache, PHOTOS, encoder)
    [kept] = (tmp_path / "kept" / "pixels-4").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    [found] = embed(cache, PHOTOS, encoder)
    assert encoder.count == 10  # type: ignore[attr-defined]
    assert list(found) == list(PHOTOS)
    # What took its place is whole.
    assert len(cache.load("pixels-4")) == 5
