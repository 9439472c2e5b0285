"""Reading images from where listings point: folders, Cloud Storage and web servers that an allow-list names."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from listing_lens.settings import Settings
from models.images import ImageError, ImageLimits

if TYPE_CHECKING:
    from google.cloud.storage import Client

_ATTEMPTS = 3
_REDIRECTS = 3
# Timeouts that a whole image may take: a server that drips never trips the one between bytes.
_TIMEOUTS_IN_ALL = 6


class _TransientError(Exception):
    """Another try may succeed."""


@dataclass(frozen=True)
class ImageSource:
    """Reads the bytes of images whose address begins with one of `allowed`: folders, gs://bucket/ or https://host/.

    Cheap to make and to pickle; clients are opened at the first use.
    """

    allowed: tuple[str, ...]
    limits: ImageLimits
    timeout_s: float

    @classmethod
    def of(cls, settings: Settings) -> ImageSource:
        return cls(
            tuple(settings.image_sources),
            ImageLimits(settings.image_max_bytes, settings.image_max_pixels),
            settings.image_timeout_s,
        )

    def allowing(self, roots: Sequence[str]) -> ImageSource:
        """The same, reading below further roots too."""
        return replace(self, allowed=(*self.allowed, *roots))

    def __getstate__(self) -> dict[str, object]:
        return {"allowed": self.allowed, "limits": self.limits, "timeout_s": self.timeout_s}

    def read(self, uri: str) -> bytes:
        """The encoded image, at most one byte more than allowed.

        Raises:
            ImageError: the address is not allowed, or there is nothing to be had there, also after some tries.
        """
        scheme = uri.partition("://")[0].lower() if "://" in uri else "file"
        readers = {"file": self._read_file, "gs": self._read_bucket, "http": self._read_web, "https": self._read_web}
        if scheme not in readers:
            raise ImageError(f"{scheme}:// addresses are not supported")
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(_TransientError),
                stop=stop_after_attempt(_ATTEMPTS),
                wait=wait_exponential_jitter(initial=0.2, max=5),
                reraise=True,
            ):
                with attempt:
                    return readers[scheme](uri)
        except _TransientError as err:
            raise ImageError(f"{err}, {_ATTEMPTS} times") from err
        except ImageError:
            raise
        except (ValueError, httpx.InvalidURL) as err:
            # An address that cannot even be taken apart.
            raise ImageError(f"not an address: {err}") from err
        raise AssertionError("unreachable: a retry either returns or raises")

    def _read_file(self, uri: str) -> bytes:
        if not uri.startswith(("/", "file://")):
            raise ImageError("a relative address, but its window names no image root")
        # Links are resolved first: one that points out of an allowed folder is outside.
        path = Path(os.path.realpath(uri.removeprefix("file://")))
        roots = [Path(root.removeprefix("file://")).resolve() for root in self.allowed if _is_local(root)]
        if not any(path.is_relative_to(root) for root in roots):
            raise ImageError("outside the folders that LENS_IMAGE_SOURCES allows")
        try:
            if not path.is_file():
                raise ImageError("cannot be read: no such file")
            with path.open("rb") as file:
                return file.read(self.limits.max_bytes + 1)
        except (FileNotFoundError, PermissionError) as err:
            raise ImageError(f"cannot be read: {err.strerror}") from err
        except OSError as err:
            raise _TransientError(f"cannot be read: {err.strerror}") from err

    def _read_bucket(self, uri: str) -> bytes:
        from google.api_core import exceptions

        self._require_allowed(uri)
        # Not as a URL: "?" and "#" are letters of an object's name.
        bucket, _, name = uri.partition("://")[2].partition("/")
        blob = self._bucket_client.bucket(bucket).blob(name)
        try:
            # The client's own retries would go on for two minutes a try.
            return bytes(blob.download_as_bytes(end=self.limits.max_bytes, timeout=self.timeout_s, retry=None))
        except (exceptions.NotFound, exceptions.Forbidden, exceptions.RequestRangeNotSatisfiable) as err:
            raise ImageError(f"cannot be read: {type(err).__name__}") from err
        except (exceptions.GoogleAPIError, OSError) as err:
            raise _TransientError(f"cannot be read: {type(err).__name__}") from err

    def _read_web(self, uri: str) -> bytes:
        for _ in range(_REDIRECTS + 1):
            # Every hop is checked, so an allowed host cannot send us elsewhere.
            self._require_allowed(uri)
            try:
                with self._web_client.stream("GET", uri) as response:
                    if response.has_redirect_location:
                        uri = urljoin(uri, response.headers["location"])
                        continue
                    _require_success(response)
                    return _read_bounded(response, self.limits.max_bytes, _TIMEOUTS_IN_ALL * self.timeout_s)
            except httpx.HTTPError as err:
                raise _TransientError(f"cannot be fetched: {type(err).__name__}") from err
        raise ImageError(f"more than {_REDIRECTS} redirects")

    def _require_allowed(self, uri: str) -> None:
        wanted = urlsplit(uri)
        climbs = ".." in re.split(r"[/\\]", unquote(wanted.path))
        for prefix in self.allowed:
            allowed = urlsplit(prefix)
            same_place = (wanted.scheme, wanted.netloc) == (allowed.scheme, allowed.netloc)
            below = f"{wanted.path}/".startswith(f"{allowed.path.rstrip('/')}/")
            if same_place and below and not climbs:
                return
        raise ImageError(f"{wanted.scheme}://{wanted.hostname} is not among LENS_IMAGE_SOURCES")

    @cached_property
    def _web_client(self) -> httpx.Client:
        return httpx.Client(timeout=self.timeout_s, follow_redirects=False, trust_env=False)

    @cached_property
    def _bucket_client(self) -> Client:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        if os.environ.get("STORAGE_EMULATOR_HOST"):
            return Client(project="emulator", credentials=AnonymousCredentials())
        return Client()


def resolve_uri(image_uri: str, image_root: str | None) -> str:
    """The absolute address of an image; relative ones start from the root that their window's manifest names.

    Whether it may be read is decided when it is: one that climbs out of its root, or has none, is refused there, alone.
    """
    if image_root is None or "://" in image_uri or image_uri.startswith("/"):
        return image_uri
    return f"{image_root.rstrip('/')}/{image_uri}"


def _is_local(root: str) -> bool:
    return "://" not in root or root.startswith("file://")


def _require_success(response: httpx.Response) -> None:
    if response.status_code == 429 or response.status_code >= 500:
        raise _TransientError(f"the server answered {response.status_code}")
    if response.status_code != 200:
        raise ImageError(f"the server answered {response.status_code}")


def _read_bounded(response: httpx.Response, max_bytes: int, max_s: float) -> bytes:
    data = bytearray()
    deadline = time.monotonic() + max_s
    for chunk in response.iter_bytes():
        data += chunk
        if len(data) > max_bytes:
            raise ImageError(f"more than the limit of {max_bytes:,} bytes")
        if time.monotonic() > deadline:
            raise ImageError(f"not complete after {max_s:g} s")
    return bytes(data)
