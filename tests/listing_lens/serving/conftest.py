"""The small indexes that the tests of serving share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_index import Small, small_index


@pytest.fixture(scope="package")
def small(tmp_path_factory: pytest.TempPathFactory, elasticsearch_url: str, untrained_siglip: Path) -> Iterator[Small]:
    """Two small indexes, the first of which is live. Whoever moves the alias moves it back."""
    with small_index(tmp_path_factory.mktemp("small"), elasticsearch_url, untrained_siglip) as made:
        yield made
