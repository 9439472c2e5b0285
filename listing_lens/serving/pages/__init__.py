"""Pages for people: each one self-contained HTML file, without scripts or external resources."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from listing_lens.lake.window import Window
from listing_lens.search.queries import Hit
from listing_lens.search.verification import CHECKS, Check, Verification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from models.registry import RegisteredEmbedder

_THUMBNAIL = 240

_templates = Environment(
    loader=PackageLoader("listing_lens.serving.pages", "templates"),
    autoescape=select_autoescape(default=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class ShownHit:
    """A search result and its photo; None if the photo cannot be shown."""

    hit: Hit
    image: Image.Image | None


@dataclass(frozen=True)
class QueryPhoto:
    """A photo that was searched with, and its file's name."""

    name: str
    image: Image.Image


def search_page(*, photos: Sequence[QueryPhoto], text: str, hits: Sequence[ShownHit], index: str, space: str) -> str:
    """The query's photos and words, either of which may be none, and what was found, nearest first."""
    return _templates.get_template("search.html").render(
        photos=[(photo.name, _data_uri(photo.image)) for photo in photos],
        text=text,
        hits=[(shown.hit, _data_uri(shown.image) if shown.image else None) for shown in hits],
        index=index,
        space=space,
    )


def evaluation_page(
    *,
    window: Window,
    embedder: RegisteredEmbedder,
    counts: Mapping[str, int],
    means: Mapping[str, tuple[int, Mapping[str, float]]],
    by_k: Figure,
    by_dims: Figure,
) -> str:
    """An evaluation's metrics, as tables in the papers' order and as curves, and how many sessions were left out.

    Args:
        window: whose sessions were evaluated.
        embedder: what ranked them.
        counts: of sessions, as in the manifest.
        means: kind of query → its sessions and their means by `variant/metric@k`; the curves are of the first kind.
        by_k, by_dims: the curves.
    """
    return _templates.get_template("evaluation.html").render(
        window=window,
        version=embedder.version,
        card=embedder.card,
        counts=counts,
        means=means,
        columns=["ndcg@5", "precision@5", "precision@3", "precision@1", "recall@5", "recall@3", "recall@1"],
        by_k=_figure_uri(by_k),
        by_dims=_figure_uri(by_dims),
    )


def verification_page(verification: Verification) -> str:
    """The checks of a verification: what each found, what was measured and required, and items that are wrong."""
    return _templates.get_template("verification.html").render(
        verification=verification,
        remedies=CHECKS,
        outcomes=[(check, _outcome(check, verification)) for check in verification.checks],
    )


def _outcome(check: Check, verification: Verification) -> str:
    if check.passed is None:
        return "left out"
    if check.passed:
        return "passed"
    return "forced" if check.name in verification.forced else "failed"


def _data_uri(image: Image.Image) -> str:
    thumbnail = image.copy()
    thumbnail.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    thumbnail.save(data, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _figure_uri(figure: Figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
