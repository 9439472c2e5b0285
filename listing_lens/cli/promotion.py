"""`lens promote`: moves the champion."""

from __future__ import annotations

from typing import Annotated

import typer

from listing_lens.cli.console import console
from listing_lens.settings import load_settings
from models.embedder import CHAMPION

Version = Annotated[str, typer.Argument(help="A version or an alias of listing-embedder in MLflow, such as candidate.")]
Because = Annotated[str, typer.Option(help="Why, for the record on the version's page in MLflow.")]


def promote(version: Version, because: Because = "asked for with lens promote") -> None:
    """Make a version of listing-embedder the champion, if its projection and its encoder are in reach."""
    from listing_lens import registration
    from listing_lens.registry import connect_registry

    settings = load_settings()
    registry = connect_registry(settings)
    before, asked = registry.champion(), registry.get(version)
    if before is not None and before.version == asked.version:
        console.print(f"listing-embedder version {asked.version} is the {CHAMPION} already")
        return
    registration.promote(asked.version, asked=True, because=because, settings=settings)
    console.print(
        f"listing-embedder version {asked.version} is the {CHAMPION}"
        + (f", no longer version {before.version}" if before else "")
    )
    console.print("Airflow's follow_champion starts the rebuild; without Airflow: lens index rebuild")
