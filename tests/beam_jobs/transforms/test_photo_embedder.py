"""Photos ahead of the model: whatever the order, the sizes of batches and the bad ones among them, each item has its result."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import photo

from beam_jobs.transforms.image_loader import Unusable
from beam_jobs.transforms.photo_embedder import PhotoEmbedder, SeenPhotos
from listing_lens.errors import LensError
from listing_lens.images.source import ImageSource
from listing_lens.lake.embeddings import Embedded
from models.encoders.encoder import Encoder
from models.images import ImageLimits, decode_image

LIMITS = ImageLimits(10**7, 10**7)
ENCODER = Encoder.load("pixels:4")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five photos, 0.jpg to 4.jpg, of copies 0-copy.jpg …, and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(5):
        (folder / f"{seed}.jpg").write_bytes(photo(seed))
        (folder / f"{seed}-copy.jpg").write_bytes(photo(seed))
    (folder / "bad.jpg").write_bytes(b"no photo")
    return folder


def encode(prepared: NDArray[Any]) -> tuple[NDArray[np.float32], str]:
    return ENCODER.encode(prepared), "float32"


def digest(data: bytes) -> bytes:
    """What a photo is known by."""
    return hashlib.blake2b(data, digest_size=16).digest()


class Batches:
    """Encodes as the encoder does, and notes what it was given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, prepared: NDArray[Any]) -> tuple[NDArray[np.float32], str]:
        self.sizes.append(len(prepared))
        return encode(prepared)


def embedder(folder: Path, encode: Any, batch_size: int) -> PhotoEmbedder[int]:
    return PhotoEmbedder(ImageSource((str(folder),), LIMITS, 1.0), ENCODER, encode, batch_size, SeenPhotos(48))


NAMES = st.sampled_from([f"{n}.jpg" for n in range(5)] + [f"{n}-copy.jpg" for n in range(5)] + ["bad.jpg", "none.jpg"])


@given(names=st.lists(NAMES, max_size=40), batch_size=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_each_item_has_its_own_result_in_order(photos: Path, names: list[str], batch_size: int) -> None:
    batches = Batches()
    embedding = embedder(photos, batches, batch_size)
    results = [result for n, name in enumerate(names) for result in embedding.add(n, str(photos / name))]
    results += embedding.flush()
    assert [n for n, _ in results] == list(range(len(names)))
    for n, result in results:
        if names[n] == "bad.jpg":
            assert result == Unusable("decode", "not an image of a supported format")
        elif names[n] == "none.jpg":
            assert isinstance(result, Unusable)
            assert result.stage == "fetch"
        else:
            assert isinstance(result, Embedded)
            data = (photos / names[n]).read_bytes()
            image = decode_image(data, LIMITS, min_side=ENCODER.image_side)
            np.testing.assert_allclose(result.embedding, ENCODER.embed([image])[0], atol=1e-6)
            assert (result.photo, result.backend) == (digest(data), "float32")
    distinct = {name.replace("-copy", "") for name in names} - {"bad.jpg", "none.jpg"}
    assert embedding.encoded == sum(batches.sizes) == len(distinct)
    assert all(size <= batch_size for size in batches.sizes)


def test_batches_are_full_whatever_lies_between(photos: Path) -> None:
    batches = Batches()
    embedding = embedder(photos, batches, 2)
    names = ["0.jpg", "bad.jpg", "0.jpg", "none.jpg", "1.jpg", "bad.jpg", "2.jpg", "1-copy.jpg", "3.jpg", "4.jpg"]
    results = [result for n, name in enumerate(names) for result in embedding.add(n, str(photos / name))]
    results += embedding.flush()
    assert batches.sizes == [2, 2, 1]
    assert len(results) == len(names)


def test_photos_are_loaded_while_the_model_computes(photos: Path) -> None:
    """The model's first batch waits for a photo that is added after that batch, and is no part of it."""
    loaded = threading.Event()

    class Source(ImageSource):
        def read(self, uri: str) -> bytes:
            data = super().read(uri)
            if uri.endswith("4.jpg"):
                loaded.set()
            return data

    def encode_late(prepared: NDArray[Any]) -> tuple[NDArray[np.float32], str]:
        assert loaded.wait(600), "the fifth photo is not loaded before the first batch is done"
        return encode(prepared)

    embedding: PhotoEmbedder[int] = PhotoEmbedder(
        Source((str(photos),), LIMITS, 1.0), ENCODER, encode_late, 2, SeenPhotos(48)
    )
    results = [result for n in range(5) for result in embedding.add(n, str(photos / f"{n}.jpg"))]
    assert len(results) + len(list(embedding.flush())) == 5


def test_what_fails_the_job_is_not_a_bad_photo(photos: Path) -> None:
    class Source(ImageSource):
        def read(self, uri: str) -> bytes:
            raise LensError("no credentials")

    embedding: PhotoEmbedder[int] = PhotoEmbedder(
        Source((str(photos),), LIMITS, 1.0), ENCODER, encode, 2, SeenPhotos(48)
    )
    list(embedding.add(0, "0.jpg"))
    with pytest.raises(LensError, match="no credentials"):
        list(embedding.flush())


def test_a_bundle_that_failed_leaves_nothing_to_the_next(photos: Path) -> None:
    embedding = embedder(photos, encode, 4)
    list(embedding.add(0, str(photos / "0.jpg")))
    embedding.clear()
    list(embedding.add(1, str(photos / "1.jpg")))
    assert [n for n, _ in embedding.flush()] == [1]


class TestKnown:
    """The embedding that an item had before is its own for as long as the photo's bytes are."""

    def known(self, data: bytes) -> Embedded:
        return Embedded(np.eye(1, 48, dtype=np.float32)[0], digest(data), "int8")

    def test_is_the_result_itself_while_the_bytes_are_the_same(self, photos: Path) -> None:
        batches = Batches()
        embedding, known = embedder(photos, batches, 4), self.known((photos / "0.jpg").read_bytes())
        results = [*embedding.add(0, str(photos / "0.jpg"), known), *embedding.flush()]
        assert results[0][1] is known
        assert (batches.sizes, embedding.encoded) == ([], 0)

    def test_is_forgotten_when_they_are_others(self, photos: Path) -> None:
        batches = Batches()
        embedding, known = embedder(photos, batches, 4), self.known((photos / "1.jpg").read_bytes())
        [(_, result)] = [*embedding.add(0, str(photos / "0.jpg"), known), *embedding.flush()]
        assert isinstance(result, Embedded)
        assert (result.photo, result.backend) == (digest((photos / "0.jpg").read_bytes()), "float32")
        assert batches.sizes == [1]

    def test_stands_for_no_other_item(self, photos: Path) -> None:
        """What was computed earlier, by whatever backend, is not handed to items that were never embedded."""
        batches = Batches()
        embedding, known = embedder(photos, batches, 4), self.known((photos / "0.jpg").read_bytes())
        results = [*embedding.add(0, str(photos / "0.jpg"), known), *embedding.add(1, str(photos / "0-copy.jpg"))]
        results += embedding.flush()
        assert results[0][1] is known
        assert isinstance(results[1][1], Embedded)
        assert results[1][1].backend == "float32"
        assert batches.sizes == [1]


def test_numbers_that_are_none_are_of_their_photo_alone(photos: Path) -> None:
    def broken(prepared: NDArray[Any]) -> tuple[NDArray[np.float32], str]:
        embeddings, backend = encode(prepared)
        # The second photo's; the copy of it comes in the next batch.
        embeddings[1 if len(embeddings) > 1 else 0, 5] = np.inf
        return embeddings, backend

    embedding = embedder(photos, broken, 3)
    names = ["0.jpg", "1.jpg", "2.jpg", "1-copy.jpg"]
    results = [result for n, name in enumerate(names) for result in embedding.add(n, str(photos / name))]
    by_item = dict([*results, *embedding.flush()])
    # It is tried again with the copy: what is not finite was not seen.
    assert by_item[3] == by_item[1] == Unusable("encode", "the encoder's numbers are not finite, computed in float32")
    assert isinstance(by_item[0], Embedded)
    assert isinstance(by_item[2], Embedded)


def test_what_was_seen_longest_ago_is_forgotten_first() -> None:
    seen = SeenPhotos(2, max_bytes=16)
    one, two, three = (
        Embedded(np.float32(vector), name, "float32")
        for vector, name in (([1, 0], b"one"), ([0, 1], b"two"), ([1, 1], b"three"))
    )
    seen.add(one)
    seen.add(two)
    assert seen.get(b"one") is one
    seen.add(three)
    assert seen.get(b"two") is None
    assert seen.get(b"one") is one
    assert seen.get(b"three") is three
