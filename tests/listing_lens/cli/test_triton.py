"""`lens triton export`: the version of MLflow is the version of Triton."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from registered import register_embedder

from listing_lens.embedding.model_repository import exported_versions
from listing_lens.registry import connect_registry
from models.encoders.runtime import Precision

if TYPE_CHECKING:
    from tests.listing_lens.cli.conftest import Lens, Marketplace, Refusal


def test_the_champion_is_exported_by_its_number(lens: Lens, marketplace: Marketplace, tmp_path: Path) -> None:
    champion = connect_registry(marketplace.settings).champion()
    assert champion
    result = lens("triton", "export", "--to", tmp_path, "--precision", "float16", "--kind", "gpu")
    assert result.exit_code == 0, result.output
    [exported] = exported_versions(tmp_path)
    assert (exported.version, exported.card) == (champion.version, champion.card)
    assert exported.precision is Precision.FLOAT16
    assert "kind: KIND_GPU" in (tmp_path / "listing-embedder" / "config.pbtxt").read_text()
    first, second, _ = result.stdout.splitlines()
    assert first == f"{tmp_path}/listing-embedder/{champion.version}: space {champion.card.space}, float16"
    assert second == f"its vectors have a cosine of at least {exported.least_cosine:.6f} with the embedder's own"


def test_what_cannot_be_exported_is_refused(refusal: Refusal, marketplace: Marketplace, tmp_path: Path) -> None:
    assert "no version or alias '4294967'" in refusal("triton", "export", "4294967", "--to", tmp_path)
    version, card = register_embedder(connect_registry(marketplace.settings), seed=5)
    # Its projection is in no lake.
    assert refusal("triton", "export", version, "--to", tmp_path).startswith(
        f"projection {card.projection_id} is not in"
    )
    assert list(tmp_path.glob("listing-embedder/*")) == []
