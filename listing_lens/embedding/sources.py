"""Encoder sources: resolving them through the registry, publishing to the lake, and finding the encoders in use."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.ledger import Ledger, not_embedded
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, Lake
from listing_lens.search.builds import Builds
from listing_lens.search.index import SearchIndex
from listing_lens.settings import Settings
from models.embedder import ENCODER_MODEL
from models.encoders.files import encoder_id, identify, lasting_source, model_files
from models.encoders.runtime import Runtime

logger = logging.getLogger(__name__)

_REGISTERED = re.compile(rf"models:/{ENCODER_MODEL}(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def encoder_runtime(settings: Settings) -> Runtime:
    """Where and how encoders may run, from the settings."""
    return Runtime(settings.encoder_device, settings.encoder_trusted_code)


def resolve_encoder(source: str | None, settings: Settings) -> str:
    """The source that an encoder is loaded from; models:/listing-encoder@ALIAS and …/VERSION are looked up in MLflow.

    Args:
        source: a folder, a model hub id, a gs:// address, pixels:N or an address in MLflow; empty means LENS_ENCODER.
        settings: name the MLflow server.

    Raises:
        LensError: MLflow is not configured or has no such encoder, or the address is of a different model.
    """
    source = source or settings.encoder
    if not source.startswith("models:"):
        return lasting_source(source)
    found = _REGISTERED.fullmatch(source)
    if not found:
        raise LensError(
            f"encoder {source!r}: an encoder of MLflow is models:/{ENCODER_MODEL}@champion or models:/{ENCODER_MODEL}/3"
        )
    from listing_lens.registry import connect_registry

    try:
        return connect_registry(settings).get_encoder(found["alias"] or found["version"]).source
    except LensError as err:
        raise LensError(f"encoder {source!r} cannot be found: {err}") from err


@dataclass(frozen=True)
class EncodersInUse:
    """The sources of the encoders that new listings are embedded with, each encoder once.

    Attributes:
        required: the live index's; before there is one, LENS_ENCODER.
        others: those of the indexes that are being built or kept for rollback, and LENS_ENCODER.
    """

    required: str
    others: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return (self.required, *self.others)


def encoders_in_use(settings: Settings) -> EncodersInUse:
    """Find the encoders that new listings must be embedded with: those of all indexes that are fed, and LENS_ENCODER.

    Raises:
        LensError: the cluster does not answer; or nothing is live, and LENS_ENCODER cannot be found.
    """
    search_index = SearchIndex.connect(settings)
    live = search_index.live()
    by_id: dict[str, str] = {}
    for index in Builds(search_index).fed():
        by_id.setdefault(index.card.encoder_id, index.card.encoder_source)
    sources = list(by_id.values())
    try:
        wanted = resolve_encoder(None, settings)
        if identify(wanted) not in by_id:
            sources.insert(len(sources) if live else 0, wanted)
    except LensError as err:
        if live is None:
            raise
        logger.warning("listings are not embedded by LENS_ENCODER: %s", err)
    # A folder whose weights have changed is the source of two encoders, but only the newer one can be loaded from it.
    required, *others = dict.fromkeys(sources)
    return EncodersInUse(required, tuple(others))


def landed_identities(lake: Lake, within: Window | None = None) -> dict[Window, str]:
    """The landed windows of listings, with the identity of their content."""
    manifests = lake.manifests(LISTINGS, lake.windows(LISTINGS, within))
    return {window: manifest.identity for window, manifest in manifests.items()}


def windows_not_embedded(lake: Lake, encoder: str, within: Window | None = None) -> list[Window]:
    """The landed windows of listings whose current content an encoder has not, or not completely, embedded, by time.

    `encoder` is its id. Of windows that lie only partly in `within`, only that part is considered.
    """
    return not_embedded(landed_identities(lake, within), Ledger(Embeddings(lake, encoder)).lines().values(), within)


def publish_encoder(lake: Lake, folder: Path, *, name: str | None = None) -> str:
    """Copy an encoder's files to the lake, where it keeps its id. Idempotent.

    Args:
        lake: receives them at encoders/<encoder_id>/.
        folder: holds the files, as written by `save_pretrained()`; other files are not copied.
        name: what its id begins with (default: the folder's name).

    Returns:
        The permanent source of the encoder.

    Raises:
        LensError: the folder holds no weights.
    """
    files = model_files(folder)
    if not any(path.suffix == ".safetensors" for path in files):
        raise LensError(f"folder {folder} holds no safetensors weights: save the encoder with save_pretrained()")
    published = f"{lake.root}/encoders/{encoder_id(name or str(folder), folder)}"
    # The config is written last, and makes the encoder exist.
    if not lake.exists(f"{published}/config.json"):
        for path in files:
            lake.write_bytes(f"{published}/{path.name}", path.read_bytes())
    return lasting_source(published)
