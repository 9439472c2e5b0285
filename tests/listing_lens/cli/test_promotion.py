"""`lens promote`: the champion moves if it can serve, and what follows is said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from listing_lens.registration import promote
from listing_lens.registry import connect_registry
from models.embedder import CANDIDATE, CHAMPION

if TYPE_CHECKING:
    from tests.listing_lens.cli.conftest import Lens, Marketplace, Refusal


def test_the_candidate_becomes_the_champion(lens: Lens, marketplace: Marketplace, untrained_siglip: Path) -> None:
    registry = connect_registry(marketplace.settings)
    promote(marketplace.version, asked=True, settings=marketplace.settings)
    assert lens("projection", "fit", "--encoder", untrained_siglip, "--dims", "5").exit_code == 0
    candidate = registry.get(CANDIDATE).version
    result = lens("promote", "candidate", "--because", "five are enough")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"listing-embedder version {candidate} is the champion, no longer version {marketplace.version}",
        "Airflow's follow_champion starts the rebuild; without Airflow: lens index rebuild",
    ]
    assert registry.get(CHAMPION).version == candidate
    move = registry.moves(candidate)[0]
    assert (move.because, move.over) == ("five are enough", marketplace.version)
    assert move.metrics["recall_at_10"] > 0

    again = lens("promote", candidate)
    assert again.stdout == f"listing-embedder version {candidate} is the champion already\n"
    assert len(registry.moves(candidate)) == 1
    promote(marketplace.version, asked=True, settings=marketplace.settings)


def test_a_version_that_cannot_serve_is_refused(
    refusal: Refusal, lens: Lens, marketplace: Marketplace, untrained_siglip: Path
) -> None:
    registry = connect_registry(marketplace.settings)
    promote(marketplace.version, asked=True, settings=marketplace.settings)
    assert lens("projection", "fit", "--encoder", untrained_siglip, "--dims", "3").exit_code == 0
    candidate = registry.get(CANDIDATE)
    Path(marketplace.lake.root, "projections", candidate.card.projection_id, "projection.json").unlink()
    assert refusal("promote", candidate.version).startswith(f"projection {candidate.card.projection_id} is not in the")
    assert registry.get(CHAMPION).version == marketplace.version


def test_a_version_that_is_none_is_refused(refusal: Refusal, marketplace: Marketplace) -> None:
    assert "no version or alias '4294967'" in refusal("promote", "4294967")
