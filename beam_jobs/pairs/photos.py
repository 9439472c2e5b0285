"""Photos of listings and queries, as stored with the pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import DoOutputsTuple, TaggedOutput

from beam_jobs.pairs.elements import StoredPhoto
from beam_jobs.transforms.image_loader import ImageLoader, Unusable
from listing_lens import progress
from listing_lens.images.source import ImageSource
from models.images import ImageError
from models.pairs.photos import as_jpeg

_IMAGES_AT_A_TIME = 32


class LoadPhotos(beam.PTransform):
    """Elements with an image, whose address `uri_of` gives → (element, `StoredPhoto`); `unusable`: (element, reason)."""

    def __init__(self, uri_of: Callable[[Any], str], source: ImageSource, side: int) -> None:
        super().__init__()
        self._load = LoadPhotoBatch(uri_of, source, side)

    def expand(self, elements: beam.PCollection[Any]) -> DoOutputsTuple:
        return (
            elements
            | "Spread" >> beam.Reshuffle()
            | "Batch" >> beam.BatchElements(_IMAGES_AT_A_TIME, _IMAGES_AT_A_TIME)
            | "Load" >> beam.ParDo(self._load).with_outputs("unusable", main="usable")
        )


class LoadPhotoBatch(beam.DoFn):
    """Fetch, decode and scale the images of a batch; each may fail without affecting the others."""

    def __init__(self, uri_of: Callable[[Any], str], source: ImageSource, side: int) -> None:
        self._uri_of = uri_of
        self._source = source
        self._side = side

    def setup(self) -> None:
        self._loader = ImageLoader(self._source, self._side)

    def process(self, elements: Sequence[Any]) -> Iterator[tuple[Any, StoredPhoto] | TaggedOutput]:
        for element, image in zip(elements, self._loader.load([self._uri_of(x) for x in elements]), strict=True):
            if isinstance(image, Unusable):
                yield TaggedOutput("unusable", (element, image))
                continue
            try:
                yield element, StoredPhoto(*as_jpeg(image, self._side))
            except ImageError as err:
                yield TaggedOutput("unusable", (element, Unusable("scale", str(err))))
        progress.advance("images taken in", len(elements))
