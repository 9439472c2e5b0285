"""Image–title pairs in the lake: a named sample on which encoders are fine-tuned, validated and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

import pyarrow as pa

from listing_lens.errors import LensError
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake

# The kinds of files in a sample, besides dead letters: pairs to train and to validate on, search sessions to choose a
# checkpoint by and to report, and the photos of the items that they showed.
TRAIN = "train"
VALIDATION = "validation"
VALIDATION_SESSIONS = "validation_sessions"
TEST_SESSIONS = "test_sessions"
SESSION_ITEMS = "items"

# Rows per row group, which a reader holds at once: about 10 MB at 288 pixels.
PAIRS_PER_GROUP = 256

PAIR_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("category", pa.list_(pa.string()), nullable=False),
        pa.field("product_id", pa.string()),
        # A JPEG: upright, RGB, its shorter side at most the sample's image side.
        pa.field("image", pa.binary(), nullable=False),
    ]
)

PAIR_SESSION_SCHEMA = pa.schema(
    [
        pa.field("session_id", pa.string(), nullable=False),
        # The query photo.
        pa.field("image", pa.binary(), nullable=False),
        # The shown items, from the first position on, and whether each was tapped: lists of the same length.
        pa.field("shown", pa.list_(pa.string()), nullable=False),
        pa.field("tapped", pa.list_(pa.bool_()), nullable=False),
        # The products (or sellers, depending on the split) of the tapped items, none of which is in another part.
        pa.field("groups", pa.list_(pa.string()), nullable=False),
        # True if neither the photo nor a tapped item's looks like a photo of another part, which was learnt from or chosen by.
        pa.field("unseen", pa.bool_(), nullable=False),
    ]
)

SESSION_ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
    ]
)

_CONTENT_BITS = 128


@dataclass(frozen=True)
class PairsInfo:
    """A sample, as described by its manifest."""

    name: str
    window: Window
    # A hash of the pairs' content, 16 hexadecimal digits: the same for the same pairs, however they are split into files.
    fingerprint: str
    counts: dict[str, int]

    @property
    def dataset(self) -> str:
        return pairs(self.name)


def pairs(name: str) -> str:
    """The dataset of a sample, which has a single window. Raises LensError when the name is not a valid folder name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise LensError(f"pairs cannot be named {name!r}: use letters, digits, '-', '_' and '.'")
    return f"pairs/{name}"


def pairs_info(lake: Lake, name: str) -> PairsInfo:
    """A sample by its name. Raises LensError when the lake does not have exactly one window of it."""
    windows = lake.windows(pairs(name))
    if len(windows) != 1:
        remedy = "sample them with `python -m beam_jobs.sample_pairs`" if not windows else "remove all but one of them"
        raise LensError(f"the lake {lake.root} has {len(windows)} windows of {pairs(name)}: {remedy}")
    manifest = lake.manifest(pairs(name), windows[0])
    return PairsInfo(name, windows[0], str(manifest.parameters["fingerprint"]), manifest.counts)


def pair_content(kind: str, item_id: str, title: str, image: bytes) -> int:
    """A pair's contribution to the fingerprint, a 128-bit number: a hash of its split, item, title and image."""
    content = json.dumps([kind, item_id, title, sha256(image).hexdigest()])
    return int.from_bytes(sha256(content.encode()).digest()[: _CONTENT_BITS // 8])


def fingerprint(contents: Iterable[int]) -> str:
    """The fingerprint of pairs from their `pair_content`s, or from partial sums of these: their sum is independent of order."""
    total = sum(contents) % 2**_CONTENT_BITS
    return sha256(total.to_bytes(_CONTENT_BITS // 8)).hexdigest()[:16]
