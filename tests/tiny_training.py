"""Tiny parents and pairs, made in a moment, for tests that fine-tune."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from PIL import Image

from models.finetune.recipe import Machine, Recipe
from models.finetune.shards import Device, Pair, Shards
from models.finetune.towers import Towers
from models.finetune.validation import HeldOutSession, Validation, ValidationShare

DIMS, SIDE, TITLE_TOKENS = 32, 16, 12
# Small and steady: no other process, no rounding, nothing left to chance but the order.
RECIPE = Recipe(
    epochs=1,
    batch_size=16,
    precision="no",
    learning_rate=1e-3,
    shuffle_buffer=24,
    validate_every=8,
    patience=1000,
)
MACHINE = Machine(readers=0, checkpoint_every=4)
_COLOURS = ("red", "green", "blue", "pink", "grey", "brown", "white", "black")
_THINGS = ("bag", "shoe", "lamp", "dress", "watch", "chair", "doll", "book")


def save_siglip(folder: Path, *, dropout: float = 0.0, seed: int = 0) -> Path:
    """A true SigLIP of 32 dimensions and 16-pixel images, with a tokenizer; as transformers makes it from a config."""
    # Imported where it is used: the processes that only read pairs need none of it.
    from transformers import SiglipConfig, SiglipModel

    tower = {"hidden_size": DIMS, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"attention_dropout": dropout}
    config = SiglipConfig(
        text_config={**_text(), **tower},
        vision_config={**tower, "image_size": SIDE, "patch_size": 8},
    )
    return _save(folder, SiglipModel, config, seed)


def save_conv_siglip(folder: Path, *, seed: int = 0) -> Path:
    """The demo's kind of model, with batch norms, as tiny."""
    from models.encoders.conv_siglip import ConvSiglipConfig, ConvSiglipModel

    config = ConvSiglipConfig(
        text_config=_text(),
        vision_config={"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    )
    return _save(folder, ConvSiglipModel, config, seed)


def _text() -> dict[str, object]:
    return {
        "vocab_size": 2048,
        "hidden_size": DIMS,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TITLE_TOKENS,
        "projection_size": DIMS,
    }


def _save(folder: Path, kind: type, config: object, seed: int) -> Path:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    from models.encoders.small_siglip import save_untrained_siglip

    # Its tokenizer stays; weights and preprocessing take the place of the larger model's.
    save_untrained_siglip(folder, titles=[title(number) for number in range(64)])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def by_number(titles: list[str]) -> torch.Tensor:
    """A tokenizer, for pairs whose titles are their numbers, that tells which of them a batch holds."""
    return torch.tensor([[int(title), 0] for title in titles])


def title(number: int) -> str:
    return f"{_COLOURS[number % 8]} {_THINGS[number // 8 % 8]} {number // 64 or ''}".strip()


def picture(seed: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """Coarse random tiles: another seed looks quite different."""
    tiles = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(tiles).resize(size, Image.Resampling.NEAREST)


def photo(seed: int) -> bytes:
    data = io.BytesIO()
    picture(seed).save(data, "JPEG", quality=95)
    return data.getvalue()


def made_pairs(count: int) -> list[Pair]:
    """Pairs of which each photo and, up to 64, each title is another."""
    return [Pair(f"i{number:04d}", title(number), f"p{number // 2}", photo(number)) for number in range(count)]


def write_shards(folder: Path, pairs: Sequence[Pair], *, rows_per_group: int = 16, shards: int = 2) -> Shards:
    """Pairs as the sampling leaves them: in shards of row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(shards):
        rows = [vars(pair) for pair in pairs[number::shards]]
        paths.append(str(folder / f"{number}.parquet"))
        pq.write_table(pa.Table.from_pylist(rows), paths[-1], row_group_size=rows_per_group)
    return Shards.open(fsspec.filesystem("file"), paths)


def made_validation(pairs: Sequence[Pair], sessions: int = 4) -> Validation:
    """Pairs, and sessions with photos of other things that show eight of them each."""
    shown = tuple(pair.item_id for pair in pairs[:8])
    held_out = [
        HeldOutSession(f"s{n}", photo(1000 + n), shown, tuple(k == n for k in range(8)), unseen=n % 2 == 0)
        for n in range(sessions)
    ]
    return Validation(pairs, held_out, {pair.item_id: pair.image for pair in pairs[:8]})


def measured(validation: Validation, towers: Towers) -> tuple[dict[str, float], Figure | None]:
    """A validation by one process."""
    return validation.measure(*ValidationShare(validation, towers, Device(0, 1)).embed(towers))


@dataclass
class Heard:
    """A log that remembers, and raises at a step if asked to."""

    stop_at: int | None = None
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    validations: dict[int, dict[str, float]] = field(default_factory=dict)
    figures: list[Figure | None] = field(default_factory=list)

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self.steps[step] = dict(metrics)
        if step == self.stop_at:
            raise KeyboardInterrupt

    def validation(self, step: int, metrics: Mapping[str, float], figure: Figure | None) -> None:
        self.validations[step] = dict(metrics)
        self.figures.append(figure)
