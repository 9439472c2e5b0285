"""Cloud Storage as a file system: where a lake, and an encoder in it, may lie."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import fsspec

from models.errors import LensError

if TYPE_CHECKING:
    from google.cloud.storage import Client


def cloud_storage() -> fsspec.AbstractFileSystem:
    """The file system of gs:// addresses, or of the emulator that STORAGE_EMULATOR_HOST names.

    Raises:
        LensError: there are no credentials.
    """
    # The plain client: the one registered for gs:// asks another service about each bucket first, a minute long where
    # that is out of reach.
    from gcsfs.core import GCSFileSystem

    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        # The address is given, since instances are kept by their arguments.
        return GCSFileSystem(token="anon", endpoint_url=emulator, use_listings_cache=False)  # noqa: S106
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        # Without this a first read would search for credentials for two minutes.
        google.auth.default()
    except DefaultCredentialsError as err:
        raise LensError(
            "no Google Cloud credentials: run `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS"
        ) from err
    return GCSFileSystem(token="google_default", use_listings_cache=False)  # noqa: S106


def storage_client() -> Client:
    """Google's own client, for what takes conditions; or of the emulator that STORAGE_EMULATOR_HOST names."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return Client(project="emulator", credentials=AnonymousCredentials())
    return Client()
