"""The files of a sample: each is a random sample of its split, in random order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from beam_jobs.pairs.elements import SampledListing, Shard, StoredPhoto
from beam_jobs.pairs.rules import Rules
from beam_jobs.transforms.windows import WindowFile, WindowTarget
from listing_lens.lake.pairs import PAIR_SCHEMA, PAIRS_PER_GROUP, TRAIN, VALIDATION, pair_content
from models.sampling import sample_number

# About 128 MB: large enough to be worth a request, small enough for a worker to hold and sort.
_SHARD_BYTES = 128 * 2**20
# Bytes of a 4:3 photo, as a JPEG of quality 95, per squared pixel of the shorter side.
_BYTES_PER_SQUARE = 0.45 * 4 / 3
# Even a small sample has several files, so that several processes can share it.
_FEWEST_SHARDS = 8


def by_shard(
    pair: tuple[SampledListing, StoredPhoto], sampled: int, rules: Rules
) -> tuple[tuple[str, int], tuple[int, dict[str, object]]]:
    """((split, shard), (position, row)); rows are sorted by position within a shard."""
    listing, photo = pair[0].listing, pair[1]
    kind = TRAIN if rules.split(listing) == "train" else VALIDATION
    validation_share = rules.validation_share / (1 - rules.test_share)
    share = validation_share if kind == VALIDATION else 1 - validation_share
    # Not the sample number: sorted by that, a balanced sample would have its small strata last.
    place = sample_number(f"{rules.salt}\0place", listing.item_id)
    row: dict[str, object] = {
        "item_id": listing.item_id,
        "title": listing.title,
        "category": list(listing.category),
        "product_id": listing.product_id,
        "image": photo.jpeg,
    }
    return (kind, place % shard_count(round(sampled * share), rules.image_side)), (place, row)


def shard_count(rows: int, image_side: int) -> int:
    """How many files to spread the pairs over: about 128 MB each, or smaller if that would give fewer than 8 files."""
    by_bytes = rows * image_side**2 * _BYTES_PER_SQUARE / _SHARD_BYTES
    return max(1, round(by_bytes), min(_FEWEST_SHARDS, rows // PAIRS_PER_GROUP))


def write_shard(
    group: tuple[tuple[str, int], Iterable[tuple[int, dict[str, Any]]]],
    dropped: Mapping[str, str],
    target: WindowTarget,
) -> Iterator[Shard]:
    """Write the rows of a shard that were not dropped, in order; no file if none are left."""
    (kind, number), placed = group
    left = sorted(((place, row) for place, row in placed if row["item_id"] not in dropped), key=_place_and_item)
    rows = [row for _, row in left]
    if not rows:
        return
    file = WindowFile(target, f"{kind}-{number:05d}", PAIR_SCHEMA, PAIRS_PER_GROUP)
    for start in range(0, len(rows), PAIRS_PER_GROUP):
        file.write(pa.Table.from_pylist(rows[start : start + PAIRS_PER_GROUP], PAIR_SCHEMA))
    file.close()
    content = sum(pair_content(kind, row["item_id"], row["title"], row["image"]) for row in rows)
    yield Shard(kind, file.name, len(rows), content)


def _place_and_item(placed: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    return placed[0], placed[1]["item_id"]
