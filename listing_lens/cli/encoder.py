"""`lens encoder`: how encoders are computed."""

from __future__ import annotations

import typer
from rich.table import Column, Table

from listing_lens.cli.console import console
from listing_lens.cli.pipeline import Encoder
from listing_lens.cli.progress import run_with_bars
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.pins import Pin, Pins
from listing_lens.lake.windows import Lake
from listing_lens.settings import load_settings

app = typer.Typer(no_args_is_help=True)


@app.callback()
def encoder() -> None:
    """How encoders are computed."""


@app.command()
def calibrate(encoder: Encoder = None) -> None:
    """Find the fastest backend that finds the same neighbours as float32, and compute the encoder's space in it from now on."""
    from listing_lens.embedding.sources import resolve_encoder
    from models.encoders.files import identify

    settings = load_settings()
    source = resolve_encoder(encoder, settings)
    run_with_bars("calibrate", "calibrate_encoder", ["--encoder", source], settings)
    pin = Pins(Embeddings(Lake(settings.lake), identify(source))).get()
    assert pin is not None
    console.print(_trials(pin))
    console.print(f"{pin.calibration.encoder_id} is computed in {pin.backend} from now on")


def _trials(pin: Pin) -> Table:
    """Speed, recall, and why a backend cannot be used, by backend."""
    calibration = pin.calibration
    table = Table(
        "backend",
        Column("images/s", justify="right"),
        Column("recall@10", justify="right"),
        Column("cannot be used", overflow="fold"),
        title=f"by {calibration.images:,} photos, on {calibration.host}",
    )
    for trial in calibration.trials:
        recall = f"{trial.recall.least:.4f}" if trial.recall else "–"
        speed = f"{trial.images_per_s:.1f}" if trial.images_per_s else "–"
        table.add_row(trial.backend, speed, recall, trial.objection)
    return table
