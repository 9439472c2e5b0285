"""`lens triton`: embedders for a Triton Inference Server."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from listing_lens.cli.console import console
from listing_lens.settings import load_settings
from models.embedder import CHAMPION, MODEL
from models.encoders.runtime import Precision

app = typer.Typer(no_args_is_help=True)


class Kind(StrEnum):
    """Where Triton computes."""

    AUTO = "auto"
    GPU = "gpu"
    CPU = "cpu"


@app.callback()
def triton() -> None:
    """Embedders for a Triton Inference Server."""


@app.command()
def export(
    to: Annotated[Path, typer.Option(help="The model repository: a folder, which is made if it is not there.")],
    version: Annotated[str, typer.Argument(help="A version or an alias of listing-embedder in MLflow.")] = CHAMPION,
    precision: Annotated[
        Precision, typer.Option(help="Of the weights: float16 takes half the memory.")
    ] = Precision.FLOAT32,
    kind: Annotated[Kind, typer.Option(help="Where Triton computes; auto is on its GPUs if it has any.")] = Kind.AUTO,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the model per GPU, or on the processor.")] = 1,
    together: Annotated[
        int, typer.Option(min=1, help="Images that Triton computes together: LENS_SEARCH_TOGETHER or more.")
    ] = 64,
) -> None:
    """Write a version of listing-embedder as an ONNX model, by the same number, and Triton's config for all versions there."""
    from listing_lens.registry import connect_registry

    settings = load_settings()
    registered = connect_registry(settings).get(version)
    # torch takes seconds to import: what can be refused without it has been by now.
    from listing_lens.embedding.embedder import Embedder
    from listing_lens.embedding.model_repository import Instances, export_version
    from listing_lens.embedding.sources import encoder_runtime
    from listing_lens.lake.windows import Lake

    runtime = replace(encoder_runtime(settings), device="cpu")
    exported = export_version(
        registered.version,
        registered.card,
        Embedder.load(registered.card, Lake(settings.lake), runtime),
        to,
        precision,
        Instances(kind.value, instances, together),
    )
    console.print(f"{to / MODEL / str(exported.version)}: space {exported.card.space}, {exported.precision}")
    console.print(f"its vectors have a cosine of at least {exported.least_cosine:.6f} with the embedder's own")
    console.print("Triton loads it when the search service needs it: see docker/triton/README.md")
