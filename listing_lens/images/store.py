"""The image store: photos that come with listings, in a folder or a bucket, under the hash of their content."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from listing_lens.lake.windows import Lake
from listing_lens.settings import Settings


@dataclass(frozen=True)
class ImageStore:
    """Keeps photos for good; the same photo is kept once."""

    root: str

    def put(self, data: bytes) -> str:
        """Keep an encoded photo, durably. Returns its address."""
        name = sha256(data).hexdigest()
        address, files = f"{self.root}/{name[:2]}/{name}", Lake(self.root)
        if not files.exists(address):
            files.write_bytes(address, data)
        return address


def image_store(settings: Settings) -> ImageStore:
    """The store that the settings name: by default, a folder of the lake."""
    return ImageStore(settings.image_store.rstrip("/") or f"{settings.lake.rstrip('/')}/images")
