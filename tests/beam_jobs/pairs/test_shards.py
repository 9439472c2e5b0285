from __future__ import annotations

import pytest

from beam_jobs.pairs.shards import shard_count


@pytest.mark.parametrize(
    ("rows", "image_side", "shards"),
    [(0, 288, 1), (200, 288, 1), (1000, 80, 3), (100_000, 80, 8), (1_000_000, 288, 371), (1_000_000, 80, 29)],
)
def test_shards_are_large_enough_to_stream_and_several_where_rows_allow(
    rows: int, image_side: int, shards: int
) -> None:
    assert shard_count(rows, image_side) == shards
