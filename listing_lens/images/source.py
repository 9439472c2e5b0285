"""Reading listings' images: from folders, Cloud Storage and web servers on an allow-list.

Strangers wrote the addresses, and servers may answer anything. A failure is one of three kinds:

- permanent, an `ImageError`: this image cannot be read. It alone becomes a dead letter.
- transient: a server or network is at fault and may recover. It is retried, and permanent after three attempts.
- fatal, a `LensError`: no image of that kind can be read until someone fixes this installation. The job fails at once.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpcore
import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from listing_lens.errors import LensError
from listing_lens.images.public_network import AddressRefusedError, PublicNetwork, Resolver, system_resolver
from listing_lens.images.store import image_store
from listing_lens.settings import Settings
from models.cloud_storage import storage_client
from models.images import ImageError, ImageLimits

if TYPE_CHECKING:
    from google.cloud.storage import Client

_ATTEMPTS = 3
_REDIRECTS = 3
# How many timeouts a whole image may take, retries and redirects included: a dripping server never exceeds a single one.
_TIMEOUTS_IN_ALL = 6
# Connections idle for this long are closed.
_IDLE_S = 5.0
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
# Request Timeout, Too Early, Too Many Requests; every 5xx is transient too.
_TRANSIENT_STATUSES = frozenset({408, 425, 429})


class _TransientError(Exception):
    """Another attempt may succeed."""


@dataclass(frozen=True)
class ImageSource:
    """Reads the bytes of images whose address begins with one of `allowed`: folders, gs://bucket/ or https://host/.

    Cheap to create and to pickle; clients are opened on first use.

    Attributes:
        allowed: what an address may begin with.
        limits: `max_bytes` is checked while an image is read.
        timeout_s: the longest wait for a server's next bytes; an image from the web may take six times as long.
        private_networks: networks (CIDR) that a web server may be in, besides the public internet.
        resolve: looks up host names.
        clock: tells how late it is, in seconds.
        sleep: waits before another attempt.
    """

    allowed: tuple[str, ...]
    limits: ImageLimits
    timeout_s: float
    private_networks: tuple[str, ...] = ()
    resolve: Resolver = system_resolver
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, settings: Settings) -> ImageSource:
        """The source that the settings describe; it also reads what the project itself has stored."""
        return cls(
            (*settings.image_sources, image_store(settings).root),
            ImageLimits(settings.image_max_bytes, settings.image_max_pixels),
            settings.image_timeout_s,
            settings.image_private_networks,
        )

    def allowing(self, roots: Sequence[str]) -> ImageSource:
        """The same source, which also reads below further roots."""
        return replace(self, allowed=(*self.allowed, *roots))

    def __getstate__(self) -> dict[str, object]:
        # Without the clients opened here.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def read(self, uri: str) -> bytes:
        """The encoded image, at most one byte more than allowed.

        Raises:
            ImageError: the address is not allowed, or the image cannot be read, even after several attempts.
            LensError: there are no credentials for Cloud Storage, or they are refused.
        """
        scheme = uri.partition("://")[0].lower() if "://" in uri else "file"
        deadline = self.clock() + self._image_timeout_s
        readers: dict[str, Callable[[str], bytes]] = {
            "file": self._read_file,
            "gs": self._read_bucket,
            "http": partial(self._read_web, deadline=deadline),
            "https": partial(self._read_web, deadline=deadline),
        }
        if scheme not in readers:
            raise ImageError(f"{scheme[:20]}:// addresses are not supported")
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(_TransientError),
                stop=stop_after_attempt(_ATTEMPTS),
                wait=wait_exponential_jitter(initial=0.2, max=5),
                sleep=self.sleep,
                reraise=True,
            ):
                with attempt:
                    return readers[scheme](uri)
        except _TransientError as err:
            raise ImageError(f"{err}, {_ATTEMPTS} times", transient=True) from err
        except ImageError:
            raise
        except (ValueError, httpx.InvalidURL) as err:
            # An address that cannot even be parsed.
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
        from google.auth import exceptions as auth

        place = _Place.of_bucket(uri)
        self._require_allowed(place)
        try:
            blob = self._bucket_client.bucket(place.host).blob(place.path.removeprefix("/"))
            # The client's own retries would take two minutes per attempt.
            return bytes(blob.download_as_bytes(end=self.limits.max_bytes, timeout=self.timeout_s, retry=None))
        except (exceptions.NotFound, exceptions.Forbidden, exceptions.RequestRangeNotSatisfiable) as err:
            # "Forbidden" is one object's fault: it is also the answer for a missing one where we may not list the bucket,
            # and a bucket that we may not read at all fails the job by its ratio of dead letters.
            raise ImageError(f"cannot be read: {type(err).__name__}") from err
        except auth.DefaultCredentialsError as err:
            raise LensError(
                f"no Google Cloud credentials to read gs://{place.host} with: "
                "run `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS"
            ) from err
        except (exceptions.Unauthorized, auth.GoogleAuthError) as err:
            if isinstance(err, auth.TransportError) or getattr(err, "retryable", False):
                raise _TransientError(f"cannot be read: {type(err).__name__}") from err
            raise LensError(
                f"Google Cloud refuses the credentials to read gs://{place.host} with: "
                "renew them, by `gcloud auth application-default login` or in GOOGLE_APPLICATION_CREDENTIALS"
            ) from err
        except (exceptions.GoogleAPIError, OSError) as err:
            raise _TransientError(f"cannot be read: {type(err).__name__}") from err

    def _read_web(self, uri: str, deadline: float) -> bytes:
        url = httpx.URL(uri)
        for _ in range(_REDIRECTS + 1):
            # Every hop is checked, so an allowed host cannot send us elsewhere.
            self._require_allowed(_Place.of_web(url))
            try:
                with self._web.stream(
                    "GET",
                    # Built from the checked parts, not from the original text, which another parser may read differently.
                    httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers={
                        "Host": url.netloc,
                        "User-Agent": "listing-lens",
                        "Accept": "*/*",
                        "Accept-Encoding": "identity",
                    },
                    extensions={"timeout": dict.fromkeys(("connect", "read", "write"), deadline)},
                ) as response:
                    headers = httpx.Headers(response.headers)
                    if response.status not in _REDIRECT_STATUSES or "location" not in headers:
                        _require_plain_success(response.status, headers)
                        return _read_bounded(response, headers, self.limits.max_bytes)
                    target = url.join(headers["location"])
            except AddressRefusedError as err:
                raise ImageError(str(err)) from err
            except httpcore.TimeoutException as err:
                if self.clock() >= deadline:
                    raise ImageError(f"not complete after {self._image_timeout_s:g} s", transient=True) from err
                raise _TransientError(f"cannot be fetched: {type(err).__name__}") from err
            except httpcore.ConnectError as err:
                raise _TransientError(f"cannot be fetched: ConnectError ({err})") from err
            except (httpcore.NetworkError, httpcore.ProtocolError) as err:
                # Their text may be the server's.
                raise _TransientError(f"cannot be fetched: {type(err).__name__}") from err
            if url.scheme == "https" and target.scheme == "http":
                raise ImageError("a redirect from https:// to http://")
            url = target
        raise ImageError(f"more than {_REDIRECTS} redirects")

    def _require_allowed(self, place: _Place) -> None:
        climbs = ".." in re.split(r"[/\\]", place.path)
        if climbs or not any(place.is_below(root) for root in self._roots):
            raise ImageError(f"{place.scheme}://{place.host} is not among LENS_IMAGE_SOURCES")

    @property
    def _image_timeout_s(self) -> float:
        return _TIMEOUTS_IN_ALL * self.timeout_s

    @cached_property
    def _roots(self) -> list[_Place]:
        return [_Place.of(root) for root in self.allowed if not _is_local(root)]

    @cached_property
    def _web(self) -> httpcore.ConnectionPool:
        networks = [ip_network(network) for network in self.private_networks]
        return httpcore.ConnectionPool(
            ssl_context=httpcore.default_ssl_context(),
            # As many as there are reading threads.
            max_connections=None,
            keepalive_expiry=_IDLE_S,
            network_backend=PublicNetwork(networks, self.timeout_s, self.resolve, self.clock),
        )

    @cached_property
    def _bucket_client(self) -> Client:
        return storage_client()


def resolve_uri(image_uri: str, image_root: str | None) -> str:
    """The absolute address of an image; relative ones start from the root that their window's manifest names.

    Whether it may be read is decided on reading: an address that climbs out of its root, or has none, is refused there.
    """
    if image_root is None or "://" in image_uri or image_uri.startswith("/"):
        return image_uri
    return f"{image_root.rstrip('/')}/{image_uri}"


def _is_local(root: str) -> bool:
    return "://" not in root or root.startswith("file://")


class _Place(NamedTuple):
    """What the allow-list is checked against: `host` with its port unless it is the scheme's default, `path` decoded."""

    scheme: str
    host: str
    path: str

    @classmethod
    def of(cls, uri: str) -> _Place:
        return cls.of_bucket(uri) if uri.startswith("gs://") else cls.of_web(httpx.URL(uri))

    @classmethod
    def of_bucket(cls, uri: str) -> _Place:
        # Not parsed as a URL: "?" and "#" may be part of an object's name.
        bucket, _, name = uri.partition("://")[2].partition("/")
        return cls("gs", bucket, f"/{name}")

    @classmethod
    def of_web(cls, url: httpx.URL) -> _Place:
        if url.userinfo:
            raise ImageError("an address with a user name or a password")
        return cls(url.scheme, url.netloc.decode("ascii"), url.path)

    def is_below(self, root: _Place) -> bool:
        same_host = (self.scheme, self.host) == (root.scheme, root.host)
        return same_host and f"{self.path}/".startswith(f"{root.path.rstrip('/')}/")


def _require_plain_success(status: int, headers: httpx.Headers) -> None:
    if status in _TRANSIENT_STATUSES or status >= 500:
        raise _TransientError(f"the server answered {status}")
    if status != 200:
        raise ImageError(f"the server answered {status}")
    # Nobody compresses a JPEG, unless it is to unpack to gigabytes.
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ImageError("the server's answer is compressed, which it was asked not to be")


def _read_bounded(response: httpcore.Response, headers: httpx.Headers, max_bytes: int) -> bytes:
    data = bytearray()
    too_much = ImageError(f"more than the limit of {max_bytes:,} bytes")
    if int(headers.get("content-length", 0)) > max_bytes:
        raise too_much
    for chunk in response.iter_stream():
        data += chunk
        if len(data) > max_bytes:
            raise too_much
    return bytes(data)
