"""The job: embeddings of every encoder are packed, and what was loaded into an index is not loaded again for it."""

from __future__ import annotations

import logging
from datetime import timedelta

import numpy as np
import pytest
from tiny import FIRST, SECOND, Indexed, land, listing

from beam_jobs import compact_embeddings, fit_projection, load_index, verify_index
from listing_lens.lake.compaction import manifests_of, stored
from listing_lens.lake.fits import load_fit
from listing_lens.lake.records import embedding_matrix, embeddings_table
from listing_lens.lake.window import Window
from listing_lens.lake.windows import Lake, embeddings
from listing_lens.loads import loaded_windows

HOURS = list(FIRST.split(timedelta(hours=1)))


def embed(lake: Lake, encoder_id: str, windows: list[Window], *, rows: int = 3, dims: int = 12) -> None:
    """Windows of random unit vectors, as a job would have written them."""
    dataset = embeddings(encoder_id)
    for number, window in enumerate(windows):
        vectors = np.random.default_rng(number).standard_normal((rows, dims)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        table = embeddings_table([listing(f"w{number}-{n}", window) for n in range(rows)], vectors, "float16")
        counts = {"embedded": rows, "removed": 0}
        lake.write_table(dataset, window, table, window.end, counts=counts)


def files(lake: Lake, encoder_id: str) -> int:
    return stored(manifests_of(lake, embeddings(encoder_id)), lake.sizes(embeddings(encoder_id))).files


def test_each_encoder_s_windows_are_packed(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for encoder_id in ("a-1", "b-2"):
        embed(lake, encoder_id, HOURS)
    before = {name: _matrix(lake, name) for name in ("a-1", "b-2")}
    compact_embeddings.main([])
    assert {name: files(lake, name) for name in before} == {"a-1": 1, "b-2": 1}
    for name, matrix in before.items():
        np.testing.assert_array_equal(_matrix(lake, name), matrix)
    assert "embeddings/a-1: 24 windows in 1 files" in caplog.text
    assert "before: 24 windows in 24 files" in caplog.text


def test_only_the_window_asked_for(lake: Lake) -> None:
    embed(lake, "a-1", HOURS)
    compact_embeddings.main(["--window_start", str(FIRST.start), "--window_end", str(HOURS[11].end)])
    assert files(lake, "a-1") == 1 + 12


def test_an_empty_lake_is_no_error(lake: Lake) -> None:
    compact_embeddings.main([])
    assert lake.encoder_ids() == []


def test_jobs_read_packed_windows_as_before(indexed: Indexed) -> None:
    lake, encoder_id = indexed.lake, indexed.index.card.encoder_id
    load_index.main(["--index", indexed.index.name])
    loaded = loaded_windows(lake, indexed.index)
    was = files(lake, encoder_id)
    # Two windows alone would gain little.
    later = list(Window(SECOND.end, SECOND.end + timedelta(days=4)).split(timedelta(days=1)))
    for window in later:
        land(lake, window, [])
    embed(lake, encoder_id, later, dims=_matrix(lake, encoder_id).shape[1])
    compact_embeddings.main([])
    assert files(lake, encoder_id) < was
    assert loaded_windows(lake, indexed.index) == loaded == [FIRST, SECOND]
    load_index.main(["--index", indexed.index.name, "--catch_up"])
    verify_index.main(["--index", indexed.index.name])
    fit_projection.main(["--name", "packed"])
    assert load_fit(lake, "packed").rows == len(_matrix(lake, encoder_id))


def _matrix(lake: Lake, encoder_id: str) -> np.ndarray:
    dataset = embeddings(encoder_id)
    return np.vstack([embedding_matrix(batch) for batch in lake.read(dataset, lake.windows(dataset), ["embedding"])])
