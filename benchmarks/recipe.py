"""The demo's recipe on drawings that it was not made for: icons, searched with another artist's drawing of the same thing.

Debian's icon themes draw the same names in styles of their own. Some themes are trained on; then each drawing of one theme
that was not searches those of another one. A name is a product: names are split, and the headline is of those whose drawings
no theme showed in training. Rows: 16 × 16 thumbnails; the image tower as it was trained on ImageNet; the demo's parent
fine-tuned; and the same recipe from random weights, for as many epochs.

    apt install papirus-icon-theme oxygen-icon-theme gnome-icon-theme mate-icon-theme faenza-icon-theme \\
        tango-icon-theme adwaita-icon-theme lxde-icon-theme breeze-icon-theme elementary-xfce-icon-theme
    python -m benchmarks.recipe --icons /usr/share/icons --epochs 2 5
"""

from __future__ import annotations

import argparse
import io
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from models.encoders.encoder import Encoder
from models.encoders.small_siglip import save_imagenet_siglip, save_untrained_siglip
from models.finetune.recipe import FOR_A_SMALL_PARENT, Machine, Recipe
from models.finetune.shards import Pair, Shards
from models.finetune.towers import Towers
from models.finetune.training import train
from models.finetune.validation import Validation
from models.pairs.split import split_of

_TRAINED_ON = ("Papirus", "elementary-xfce", "Faenza", "mate", "gnome", "Adwaita", "Tango", "nuoveXT2")
_SIDE = 128
# The least side of a bitmap that is worth looking at.
_LEAST_SIDE = 48
_UNSEEN_SHARE = 0.3
_CUTOFFS = (1, 10)
_SHARDS, _ROWS_PER_GROUP = 2, 64

# RGB images → (n, d) float32, unit length.
Embed = Callable[[Sequence[Image.Image]], NDArray[np.float32]]


def main() -> None:
    """Print hit@1 and hit@10 of every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icons", type=Path, default=Path("/usr/share/icons"), help="the folder of the themes")
    parser.add_argument("--train", nargs="+", default=_TRAINED_ON, help="themes that are trained on")
    parser.add_argument("--catalog", default="oxygen", help="the theme that is searched")
    parser.add_argument("--queries", default="breeze", help="the theme whose drawings search it")
    parser.add_argument("--epochs", type=float, nargs="+", default=[2.0, 5.0])
    given = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    drawn = {theme: _drawings(given.icons / theme) for theme in (*given.train, given.catalog, given.queries)}
    artists = Counter(name for drawings in drawn.values() for name in drawings)
    # What only one artist drew cannot be searched with another's drawing, and is most of the largest theme.
    shared = {name for name, count in artists.items() if count > 1}
    of_theme = {theme: list(_pairs(theme, drawings, shared)) for theme, drawings in drawn.items()}
    pairs = [pair for theme in given.train for pair in of_theme[theme] if not _is_unseen(pair)]
    catalog, queries = (
        {pair.product_id or "": pair for pair in of_theme[theme]} for theme in (given.catalog, given.queries)
    )
    searched = [queries[name] for name in sorted(catalog.keys() & queries.keys())]
    unseen = sum(map(_is_unseen, searched))
    print(
        f"{len(pairs)} drawings of {len(given.train)} themes to train on; {len(catalog)} of {given.catalog} are searched"
    )
    print(f"with {len(searched)} of {given.queries}, {unseen} of them of names that training did not show", flush=True)
    show = partial(_show, searched=searched, catalog=list(catalog.values()))
    titles = [pair.title for pair in pairs]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        parents = {
            "from ImageNet": save_imagenet_siglip(home / "imagenet", titles),
            "from random weights": save_untrained_siglip(home / "untrained", titles),
        }
        show("16 × 16 thumbnails", Encoder.load("pixels:16").embed)
        show("ImageNet's tower as it is", partial(_tower_alone, Towers.load(parents["from ImageNet"]).eval()))
        shards = _write(pairs, home / "pairs")
        for epochs in given.epochs:
            for name, parent in parents.items():
                recipe = Recipe.model_validate(FOR_A_SMALL_PARENT | {"epochs": epochs, "validate_every": 10**9})
                if name == "from random weights":
                    # There is nothing in it yet that should stay.
                    recipe = recipe.model_copy(update={"image_learning_rate": None, "freeze_image_layers": 0})
                began = time.perf_counter()
                outcome = train(
                    parent,
                    recipe,
                    shards,
                    Validation(pairs[:256], (), {}),
                    home / f"{name} {epochs}",
                    _Silence(),
                    _MACHINE,
                )
                minutes = (time.perf_counter() - began) / 60
                encoder = Encoder.load(str(outcome.encoder))
                show(f"{name}, {outcome.steps} steps in {minutes:.1f} minutes", encoder.embed)


_MACHINE = Machine(readers=1, checkpoint_every=10**9)


def _show(label: str, embed: Embed, *, searched: Sequence[Pair], catalog: Sequence[Pair]) -> None:
    """Print the share of drawings whose own name is among the k nearest of the catalog, of unseen names and of all."""
    began = time.perf_counter()
    queries, items = (embed([_decoded(pair) for pair in pairs]) for pairs in (searched, catalog))
    rate = (len(queries) + len(items)) / (time.perf_counter() - began)
    names = [pair.product_id for pair in catalog]
    own = np.array([names.index(pair.product_id) for pair in searched])
    scores = queries @ items.T
    # Drawings at least as near come before it, so that an encoder which tells nothing apart finds nothing.
    ranks = (scores >= scores[np.arange(len(own)), own][:, None]).sum(axis=1)
    unseen = np.array([_is_unseen(pair) for pair in searched])
    hits = {k: (np.mean(ranks[unseen] <= k), np.mean(ranks <= k)) for k in _CUTOFFS}
    shown = ", ".join(f"hit@{k} {of_unseen:.3f} ({of_all:.3f} of all)" for k, (of_unseen, of_all) in hits.items())
    print(f"{label}: {shown}; {rate:.0f} images/s", flush=True)


@torch.inference_mode()
def _tower_alone(towers: Towers, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """Its pooled features, without the projection, which is not trained."""
    found = []
    for start in range(0, len(images), 128):
        pixels = torch.from_numpy(towers.prepare_images(images[start : start + 128])).float() / 127.5 - 1
        found.append(towers.model.vision_model(pixels).pooler_output.flatten(1).numpy())
    features = np.concatenate(found)
    unit: NDArray[np.float32] = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


class _Silence:
    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        pass

    def validation(self, step: int, metrics: Mapping[str, float], figure: Figure | None) -> None:
        pass


# ---- drawings ------------------------------------------------------------------------------------------------------------


def _drawings(theme: Path) -> dict[str, Path]:
    """The most detailed drawing of each name."""
    best: dict[str, tuple[int, Path]] = {}
    for path in sorted(theme.rglob("*")):
        # Links are further names of a drawing; symbolic icons are of one colour, for buttons.
        drawn = path.suffix in {".svg", ".png"} and path.is_file() and not path.is_symlink()
        if drawn and not {"symbolic", "animations", "cursors"} & set(path.parts) and "symbolic" not in path.stem:
            name = path.stem.lower()
            best[name] = max(best.get(name, (0, path)), (_size(path), path))
    if not best:
        raise SystemExit(f"no drawings in {theme}: install the theme's package")
    return {name: path for name, (_, path) in sorted(best.items())}


def _pairs(theme: str, drawings: Mapping[str, Path], names: Collection[str]) -> Iterator[Pair]:
    """The drawings of some names, on white, with the name's words as the title."""
    for name in sorted(drawings.keys() & names):
        image = _rendered(drawings[name])
        if image is not None:
            data = io.BytesIO()
            image.save(data, "JPEG", quality=95)
            yield Pair(f"{theme}/{name}", re.sub(r"[^\w]+|_", " ", name), name, data.getvalue())


def _size(path: Path) -> int:
    """In pixels, as the folders' names say; a drawing that scales is larger than any."""
    sizes = [int(number) for part in path.parts for number in re.findall(r"^(\d+)(?:x\d+)?$", part)]
    return 10_000 if "scalable" in path.parts or not sizes else max(sizes)


def _rendered(path: Path) -> Image.Image | None:
    """A drawing on white; None if it is too small, or cannot be rendered."""
    try:
        if path.suffix == ".svg":
            data = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=_SIDE, height=_SIDE))
            image = Image.open(io.BytesIO(data)).convert("RGBA")
        else:
            image = Image.open(path).convert("RGBA")
    except (OSError, ValueError):
        return None
    if min(image.size) < _LEAST_SIDE:
        return None
    image = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _is_unseen(pair: Pair) -> bool:
    return split_of("recipe", pair.product_id or "", 0, _UNSEEN_SHARE) == "test"


def _decoded(pair: Pair) -> Image.Image:
    return Image.open(io.BytesIO(pair.image)).convert("RGB")


def _write(pairs: Sequence[Pair], folder: Path) -> Shards:
    folder.mkdir()
    order = np.random.default_rng(0).permutation(len(pairs))
    paths = []
    for number in range(_SHARDS):
        rows = [vars(pairs[place]) for place in order[number::_SHARDS]]
        paths.append(str(folder / f"{number}.parquet"))
        pq.write_table(pa.Table.from_pylist(rows), paths[-1], row_group_size=_ROWS_PER_GROUP)
    return Shards.open(fsspec.filesystem("file"), paths)


if __name__ == "__main__":
    main()
