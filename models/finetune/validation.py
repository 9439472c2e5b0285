"""How good an encoder is on held-out data: titles found by their photos, and search sessions ranked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.finetune.shards import Device, Pair, decode
from models.finetune.towers import Towers
from models.metrics import METRICS, ranked_metrics
from models.pairs.titles import title_key

TITLE_CUTOFFS = (1, 5, 10)
_BATCH = 128


@dataclass(frozen=True)
class HeldOutSession:
    """A search by photo: the photo, the items shown and which were tapped.

    `unseen`: neither the photo nor a tapped item's looks like one that another part of the split holds.
    `groups`: the products of the tapped items.
    """

    session_id: str
    image: bytes
    shown: tuple[str, ...]
    tapped: tuple[bool, ...]
    unseen: bool
    groups: tuple[str, ...] = ()


def title_recall(
    images: NDArray[np.float32],
    titles: NDArray[np.float32],
    texts: Sequence[str],
    cutoffs: Sequence[int] = TITLE_CUTOFFS,
) -> dict[str, float]:
    """The share of photos (n, d) whose own title (n, d), or one that reads the same, is among the k nearest titles."""
    keys: dict[str, int] = {}
    labels = np.array([keys.setdefault(title_key(text), len(keys)) for text in texts])
    ranks = []
    for start in range(0, len(images), _BATCH):
        scores = images[start : start + _BATCH] @ titles.T
        own = labels[start : start + _BATCH, None] == labels[None]
        best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
        # Titles at least as near come before it, those that read the same counting once: an encoder that gives everything
        # the same embedding, or NaN, finds nothing.
        ranks += [len(np.unique(labels[row])) for row in ~(scores < best) & ~own]
    return {f"titles/recall@{k}": float(np.mean(np.array(ranks) < k)) for k in cutoffs}


def rank_sessions(
    sessions: Sequence[HeldOutSession], queries: NDArray[np.float32], items: Mapping[str, NDArray[np.float32]]
) -> dict[str, dict[str, float]]:
    """Metrics of each session by its id, as the offline evaluation computes them.

    Args:
        sessions: to be ranked.
        queries: the embeddings of their photos, (n, d).
        items: the embeddings (d,) of all items that they show.
    """
    return {
        session.session_id: ranked_metrics(query, items, session.shown, session.tapped)
        for session, query in zip(sessions, queries, strict=True)
    }


def mean_metrics(results: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over sessions; none over no session."""
    rows = list(results)
    return {name: float(np.mean([row[name] for row in rows])) for name in METRICS} if rows else {}


@dataclass(frozen=True)
class Validation:
    """What a training is validated on.

    Attributes:
        pairs: of the validation split.
        sessions: held out from training.
        items: the encoded images of all items that they show, by id.
    """

    pairs: Sequence[Pair]
    sessions: Sequence[HeldOutSession]
    items: Mapping[str, bytes]

    @property
    def default_metric(self) -> str:
        """The metric that decides by default: of sessions, if there are any, since they are what the encoder is for."""
        return "sessions/ndcg@5" if self.sessions else "titles/recall@10"

    @property
    def photos(self) -> list[bytes]:
        """Encoded images: the pairs', the sessions', the items'."""
        return [pair.image for pair in self.pairs] + [s.image for s in self.sessions] + list(self.items.values())

    @property
    def titles(self) -> list[str]:
        return [pair.title for pair in self.pairs]

    def measure(
        self, photos: NDArray[np.float32], titles: NDArray[np.float32]
    ) -> tuple[dict[str, float], Figure | None]:
        """Metrics by name, and a figure of what some sessions' photos find.

        Args:
            photos: embeddings of `photos`, (n, d), unit length.
            titles: embeddings of `titles`, (m, d), unit length.
        """
        images, queries, shown = np.split(photos, np.cumsum([len(self.pairs), len(self.sessions)]))
        metrics = title_recall(images, titles, self.titles)
        if not self.sessions:
            return metrics, None
        items = dict(zip(self.items, shown, strict=True))
        results = rank_sessions(self.sessions, queries, items)
        metrics |= {f"sessions/{name}": value for name, value in mean_metrics(results.values()).items()}
        unseen = mean_metrics(results[session.session_id] for session in self.sessions if session.unseen)
        metrics |= {f"unseen/{name}": value for name, value in unseen.items()}
        return metrics, retrievals(self.sessions[:_SHOWN_SESSIONS], queries, items, self.items)


class ValidationShare:
    """One device's share of a validation: its photos are prepared once, and embedded for every validation."""

    def __init__(self, validation: Validation, towers: Towers, device: Device) -> None:
        with ThreadPoolExecutor() as threads:
            mine = validation.photos[device.number :: device.of]
            prepared = list(threads.map(lambda photo: towers.prepare_images([decode(photo)]), mine))
        self._photos = np.concatenate(prepared) if prepared else None
        self._titles = validation.titles[device.number :: device.of]

    def embed(self, towers: Towers) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The photos' and the titles' embeddings, (n, d) and (m, d), unit length."""
        photos = towers.embed_prepared(self._photos) if self._photos is not None else _NONE
        return photos, towers.embed_titles(self._titles) if self._titles else _NONE


def interleaved(shares: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The rows of all devices' shares, in the order of the whole."""
    width = max(share.shape[1] for share in shares)
    whole = np.empty((sum(map(len, shares)), width), np.float32)
    for number, share in enumerate(shares):
        if len(share):
            whole[number :: len(shares)] = share
    return whole


_NONE = np.empty((0, 0), np.float32)
_SHOWN_SESSIONS, _SHOWN_ITEMS = 6, 7


def retrievals(
    sessions: Sequence[HeldOutSession],
    queries: NDArray[np.float32],
    items: Mapping[str, NDArray[np.float32]],
    photos: Mapping[str, bytes],
) -> Figure:
    """One row per session: its photo and the nearest of all items, with tapped ones framed."""
    names, vectors = list(items), np.stack(list(items.values()))
    figure = Figure(figsize=(1.3 * (_SHOWN_ITEMS + 1), 1.35 * len(sessions)), layout="constrained")
    axes = figure.subplots(len(sessions), _SHOWN_ITEMS + 1, squeeze=False)
    for row, session, query in zip(axes, sessions, queries, strict=False):
        tapped = {item for item, was in zip(session.shown, session.tapped, strict=True) if was}
        nearest = [names[place] for place in np.argsort(-(vectors @ query))[:_SHOWN_ITEMS]]
        _show(row[0], session.image, "#1f6feb")
        for axis, item_id in zip(row[1:], nearest, strict=False):
            _show(axis, photos[item_id], "#2da44e" if item_id in tapped else None)
        for axis in row[1 + len(nearest) :]:
            axis.set_axis_off()
    axes[0][0].set_title("photo", fontsize=8)
    axes[0][1].set_title("nearest; tapped ones framed", fontsize=8, loc="left")
    return figure


def _show(axis: Any, image: bytes, frame: str | None) -> None:
    axis.imshow(np.asarray(decode(image)))
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(frame is not None)
        spine.set(edgecolor=frame or "none", linewidth=3)
