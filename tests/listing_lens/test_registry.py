from __future__ import annotations

import pytest

from listing_lens.errors import LensError
from listing_lens.registry import connect_registry
from listing_lens.settings import load_settings


def test_a_server_that_is_not_set_says_what_to_do() -> None:
    with pytest.raises(LensError, match="LENS_MLFLOW_URL is not set and no local stack is up: set it, or start"):
        connect_registry(load_settings(mlflow_url=""))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://"])
def test_a_server_that_does_not_answer_is_named(url: str) -> None:
    with pytest.raises(LensError, match=f"MLflow at {url} cannot be reached"):
        connect_registry(load_settings(mlflow_url=url))
