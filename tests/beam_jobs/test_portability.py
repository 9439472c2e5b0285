"""Every job gives the same on a portable runner whose workers are other processes, and on the local runner with two of them.

What would work only by accident of sharing a process (a client that cannot be pickled, a setting that only the launcher
has, a coder that the local runner never asks for) fails here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from prism import prism_program, running_prism
from tiny import FIRST, SECOND, Indexed, counts_of, items_of, land_marketplace, log_search, photo, remove_indexes
from tiny import land_sessions as put_sessions

from beam_jobs import (
    compact_lake,
    embed_listings,
    evaluate_sessions,
    fit_projection,
    land_sessions,
    load_index,
    redrive_dead_letters,
    verify_index,
)
from beam_jobs.launcher import refusal
from listing_lens.jobs import run_job
from listing_lens.lake.dead_letters import DeadLetters
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.fits import load_fit, load_projection
from listing_lens.lake.log import Log
from listing_lens.lake.pairs import TEST_SESSIONS, VALIDATION_SESSIONS, pairs
from listing_lens.lake.records import Query, Session
from listing_lens.lake.window import Window
from listing_lens.lake.windows import ROWS, SESSIONS, Lake, evaluations
from listing_lens.search.index import SearchIndex
from listing_lens.search.loads import Loads
from listing_lens.settings import load_settings
from models.encoders.files import identify

BOTH = Window(FIRST.start, SECOND.end)
# A day of searches that is over, whenever the tests run.
LOGGED = Window(FIRST.start - timedelta(days=1000), SECOND.start - timedelta(days=1000))
_WINDOW = ["--window_start", str(BOTH.start), "--window_end", str(BOTH.end)]
_FIRST = ["--window_start", str(FIRST.start), "--window_end", str(FIRST.end)]
_LOGGED = ["--window_start", str(LOGGED.start), "--window_end", str(LOGGED.end)]
_LOCAL = ["--runner=FnApiRunner"]
_TWO_PROCESSES = [*_LOCAL, "--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@dataclass(frozen=True)
class Run:
    """What the jobs left, having run on one runner with these options."""

    options: list[str]
    indexed: Indexed
    encoder: str

    @property
    def lake(self) -> Lake:
        return self.indexed.lake


def _land(root: Path) -> Lake:
    lake = Lake(str(root))
    land_marketplace(lake)
    shown = tuple(f"m{n:03d}" for n in range(4, 12))
    # Hour, query and tapped item; the last two are of the test period and of test products.
    searches = (
        (0, "m005", "m005"),
        (1, "m010", "m005"),
        (2, "m002", "m005"),
        (20, "m006", "m006"),
        (21, "m007", "m007"),
    )
    sessions = [
        Session(
            f"s{hour}",
            FIRST.start + timedelta(hours=hour),
            Query((f"{query}.jpg",)),
            shown,
            tuple(item == tapped for item in shown),
        )
        for hour, query, tapped in searches
    ]
    put_sessions(lake, FIRST, sessions)
    for n in range(3):
        log_search(lake, LOGGED.start + timedelta(hours=8 * n), photo(n), shown, shown[:n])
    return lake


def _work_elsewhere_only(environment: pytest.MonkeyPatch) -> None:
    """Make this process unable to read what the lake's files hold: whoever does it is another."""

    def read_here(*_: object, **__: object) -> None:
        raise AssertionError("the work was done in the process that launched the job")

    for name in ("read", "read_manifest"):
        environment.setattr(Lake, name, read_here)
    environment.setattr(Log, "read", read_here)
    # Rows of tables are streamed by workers alone.
    for module in ("beam_jobs.transforms.tables", "listing_lens.lake.embeddings"):
        environment.setattr(f"{module}.scan", read_here)


def _run_all(lake: Lake, encoder: Path, elasticsearch_url: str, options: list[str], *, elsewhere: bool) -> Run:
    alias = f"test-{uuid4().hex[:8]}"
    settings: dict[str, Any] = {
        "LAKE": lake.root,
        "ENCODER": encoder,
        "PROJECTION_DIMS": 8,
        "ENCODER_BATCH_SIZE": 8,
        # What a calibration would choose may differ between the two; fixtures of modules come before those of tests.
        "ENCODER_BACKENDS": '["float32"]',
        "MAX_DEAD_LETTER_RATIO": 0.1,
        "ELASTICSEARCH_URL": elasticsearch_url,
        "ALIAS": alias,
        "SEARCH_LOG_DAYS": 100_000,
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(f"LENS_{name}", str(value))
        if elsewhere:
            _work_elsewhere_only(environment)
        embed_listings.main([*_WINDOW, *options])
        redrive_dead_letters.main(["--all", *options])
        compact_lake.main(options)
        fit_projection.main(["--name", "fit", *options])
        card = load_fit(lake, "fit").card
        evaluate_sessions.main([*_FIRST, "--card", card.model_dump_json(), *options])
        land_sessions.main([*_LOGGED, *options])
        # As a program, as Airflow starts it: what travels must not be what only `__main__` defines.
        shares = ["--validation_share=0.4", "--test_share=0.3", "--test_time=0.25"]
        sample = ["--name", "p", *_FIRST, "--pairs=15", *shares, "--sessions=3", *options]
        run_job("sample_pairs", sample, load_settings())
        search_index = SearchIndex.connect(load_settings())
        index = search_index.create(card, "one")
        load_index.main(["--index", index.name, *options])
        verify_index.main(["--index", index.name, *options])
        return Run(options, Indexed(lake, search_index, index), identify(str(encoder)))


def _delete_indexes(run: Run) -> None:
    remove_indexes(run.indexed.search_index)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, untrained_siglip: Path, elasticsearch_url: str) -> Iterator[Run]:
    lake = _land(tmp_path_factory.mktemp("local") / "lake")
    run = _run_all(lake, untrained_siglip, elasticsearch_url, _LOCAL, elsewhere=False)
    yield run
    _delete_indexes(run)


@pytest.fixture(scope="module")
def prism() -> Path:
    return prism_program(load_settings().cache)


@pytest.fixture(scope="module")
def portable(
    prism: Path, tmp_path_factory: pytest.TempPathFactory, untrained_siglip: Path, elasticsearch_url: str
) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("prism")
    lake = _land(folder / "lake")
    with running_prism(prism, folder) as options:
        run = _run_all(lake, untrained_siglip, elasticsearch_url, options, elsewhere=True)
        yield run
    _delete_indexes(run)


def _rows(lake: Lake, dataset: str, window: Window, kind: str = ROWS, key: str = "item_id") -> list[dict[str, Any]]:
    rows = [row for batch in lake.read(dataset, [window], kind=kind) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: str(row[key]))


def _assert_same_embeddings(lake: Lake, other: Lake, encoder: str) -> None:
    assert counts_of(lake, encoder, BOTH) == counts_of(other, encoder, BOTH)
    found, expected = items_of(lake, encoder), items_of(other, encoder)
    assert found.keys() == expected.keys()
    for item, row in found.items():
        embeddings = row.pop("embedding"), expected[item].pop("embedding")
        assert (embeddings[0] is None) == (embeddings[1] is None)
        if embeddings[0] is not None:
            np.testing.assert_allclose(*embeddings, atol=1e-3)
        # Each lake has its photos below its own root, which the version's last bits are a hash of.
        place = {"image_uri": "", "version": row["version"] >> 11}
        assert row | place == expected[item] | place
    letters = [
        [(letter.key, letter.stage, letter.reason) for letter in DeadLetters(Embeddings(one, encoder)).letters()]
        for one in (lake, other)
    ]
    assert letters[0] == letters[1] != []


def test_embeddings_are_the_same(portable: Run, local: Run) -> None:
    _assert_same_embeddings(portable.lake, local.lake, local.encoder)


def test_projections_are_the_same(portable: Run, local: Run) -> None:
    fits = [load_fit(run.lake, "fit") for run in (portable, local)]
    assert fits[0].rows == fits[1].rows > 0
    found, expected = (
        load_projection(run.lake, fit.card.projection_id, fit.card.encoder_id)
        for run, fit in zip((portable, local), fits, strict=True)
    )
    np.testing.assert_allclose(found.components, expected.components, atol=1e-6)
    np.testing.assert_allclose(found.bias, expected.bias, atol=1e-6)
    np.testing.assert_allclose(found.spectrum, expected.spectrum, atol=1e-9)


def test_evaluations_are_the_same(portable: Run, local: Run) -> None:
    counts, metrics, rows = [], [], []
    for run in (portable, local):
        dataset = evaluations(run.indexed.index.card.space)
        manifest = run.lake.manifest(dataset, FIRST)
        counts.append(manifest.counts)
        metrics.append(manifest.parameters["metrics"])
        rows.append(len(_rows(run.lake, dataset, FIRST, key="session_id")))
    assert counts[0] == counts[1]
    assert counts[0]["evaluated"] == 4
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-6)
    assert rows == [8, 8]


def test_sessions_from_the_log_are_the_same(portable: Run, local: Run) -> None:
    found, expected = (_rows(run.lake, SESSIONS, LOGGED, key="session_id") for run in (portable, local))
    assert found == expected
    assert [sum(row["tapped"]) for row in found] == [0, 1, 2]


def test_samples_of_pairs_are_the_same(portable: Run, local: Run) -> None:
    found, expected = (run.lake.manifest(pairs("p"), FIRST) for run in (portable, local))
    assert found.counts == expected.counts
    assert (found.counts[VALIDATION_SESSIONS], found.counts[TEST_SESSIONS]) == (2, 2)
    assert found.parameters == expected.parameters


def test_indexes_hold_the_same(portable: Run, local: Run) -> None:
    items = [f"m{n:03d}" for n in range(40)]
    held, counts, loads = [], [], []
    for run in (portable, local):
        search_index, name = run.indexed.search_index, run.indexed.index.name
        held.append(search_index.versions(name, items))
        counts.append(search_index.counts(name))
        loads.append(
            [load.counts for load in Loads(run.indexed.search_index, run.indexed.search_index.get(name)).all()]
        )
    # The versions' last bits are a hash of where the photos are.
    found, expected = ({item: (at >> 11, status) for item, (at, status) in of.items()} for of in held)
    assert found == expected
    assert counts[0] == counts[1]
    assert loads[0] == loads[1]
    assert counts[0]["searchable"] > 30


def test_a_refusal_arrives_in_one_sentence(
    portable: Run, elasticsearch_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_index, index = portable.indexed.search_index, portable.indexed.index
    monkeypatch.setenv("LENS_LAKE", portable.lake.root)
    monkeypatch.setenv("LENS_ELASTICSEARCH_URL", elasticsearch_url)
    monkeypatch.setenv("LENS_ALIAS", search_index.alias)
    search_index.client.delete(index=index.name, id="m007", refresh=True)
    _work_elsewhere_only(monkeypatch)
    with pytest.raises(Exception, match="m007 is missing") as failure:
        verify_index.main(["--index", index.name, *portable.options])
    sentence = refusal(failure.value) or ""
    assert sentence.startswith(f"index {index.name} failed its verification: reconciled (1 of 39 items differ")
    assert "m007 is missing" in sentence
    assert "or accept it with --force reconciled" in sentence


def test_two_worker_processes_embed_the_same(
    local: Run, tmp_path: Path, untrained_siglip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = _land(tmp_path / "lake")
    for name, value in (
        ("LAKE", lake.root),
        ("ENCODER", untrained_siglip),
        ("ENCODER_BATCH_SIZE", 4),
        ("ENCODER_BACKENDS", '["float32"]'),
    ):
        monkeypatch.setenv(f"LENS_{name}", str(value))
    with pytest.MonkeyPatch.context() as elsewhere:
        _work_elsewhere_only(elsewhere)
        embed_listings.main([*_WINDOW, *_TWO_PROCESSES])
    _assert_same_embeddings(lake, local.lake, local.encoder)
