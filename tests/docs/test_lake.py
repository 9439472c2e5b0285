"""The page on the lake: what it shows of querying the tables is run as it stands, on a small table."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import FIRST, listing

from listing_lens.lake.embeddings import NEWER, Embedded, Embeddings, Item, item_batch
from listing_lens.lake.records import Status
from listing_lens.lake.windows import Lake

_PAGE = (Path(__file__).parents[2] / "docs" / "lake.md").read_text()
_EXAMPLES = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)
_TABLE = re.compile(r'lance\.dataset\("(.+)/embeddings/(.+)/items\.lance"\)')
_DIMS = 768


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the examples find their table: 40 items on sale in two categories, and one of each that is sold."""
    [(root, encoder_id)] = {found for example in _EXAMPLES for found in _TABLE.findall(example)}
    embeddings = Embeddings(Lake(str(tmp_path / root)), encoder_id)
    items = []
    for n, vector in enumerate(np.random.default_rng(0).standard_normal((42, _DIMS))):
        one = listing(
            f"m{n:03d}", minute=n, category=("Fashion", "Bags") if n % 2 else ("Toys",), price=100 * (n % 2 + 1)
        )
        if n < 2:
            items.append(Item(replace(one, status=Status.SOLD), FIRST, None))
        else:
            items.append(Item(one, FIRST, Embedded(vector / np.linalg.norm(vector), bytes(16), "float32")))
    schema = embeddings.schema(_DIMS, "float16")
    embeddings.items.merge(schema, [item_batch(items, schema)], newer=NEWER)
    return tmp_path


@pytest.mark.parametrize(
    ("example", "rows"),
    zip(
        _EXAMPLES,
        (
            [r"Fashion\W+on_sale\W+20\W+200\.0", r"Fashion\W+sold\W+1\W+200\.0", r"Toys\W+on_sale\W+20\W+100\.0"],
            [r"Fashion\W+20\W+200\.0", r"Toys\W+20\W+100\.0"],
            # An item looks most like itself.
            [r"m025\W+1\.000|m025\W+0\.999"],
        ),
        strict=True,
    ),
    ids=["duckdb", "polars", "duckdb with vectors"],
)
def test_an_example_prints_what_the_table_holds(example: str, rows: list[str], folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", example], cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for row in rows:
        assert re.search(row, done.stdout), done.stdout
