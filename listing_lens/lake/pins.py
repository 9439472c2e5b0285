"""The backend that a space is computed in: chosen once, the same for every job and host, and kept beside its embeddings.

<root>/embeddings/<encoder>/backend.json          the pin: which backend, by which calibration
                           /backends/<name>/      what the backend computes by, such as a quantised graph

An encoder without a pin is computed in float32, and so is a pinned one by a host that cannot run its backend: calibration has
made sure that their vectors find each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from listing_lens.errors import LensError
from listing_lens.lake.embeddings import Embeddings
from listing_lens.lake.windows import Lake
from models.encoders.runtime import Backend
from models.encoders.trials import Calibration


class Pin(BaseModel):
    """The backend of a space.

    Attributes:
        backend: computes the embeddings of listings.
        files: the folder in `backends` with what it computes by; None for float32, which needs nothing.
        calibration: how it was chosen.
        pinned_at: when.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend
    files: str | None
    calibration: Calibration
    pinned_at: datetime


@dataclass(frozen=True)
class Pins:
    """The pin of an encoder's embeddings, of which there is one or none."""

    embeddings: Embeddings

    @property
    def path(self) -> str:
        return f"{self.embeddings.folder}/backend.json"

    def get(self) -> Pin | None:
        """The pin; None before there is one. Raises LensError if it cannot be read."""
        try:
            return Pin.model_validate_json(self._lake.read_bytes(self.path))
        except FileNotFoundError:
            return None
        except ValidationError as err:
            raise LensError(
                f"{self.path} is no pin of this version ({err.errors()[0]['msg']}): remove it, and embed in float32"
            ) from err

    def create(self, calibration: Calibration, made: Path, now: datetime) -> Pin:
        """Pin what a calibration chose, unless there is a pin already: the first of several processes wins.

        Args:
            calibration: how it was chosen.
            made: the local folder that `models.encoders.backends.save_backend` wrote; there is none for float32.
            now: the current time, timezone-aware.

        Returns:
            The pin, whoever's it is.
        """
        backend, files = calibration.chosen, None
        if backend is not Backend.FLOAT32:
            files = f"{backend}-{Lake.new_attempt(now)}".lower()
            self._lake.put_folder(made, self.files_of(files))
        pin = Pin(backend=backend, files=files, calibration=calibration, pinned_at=now)
        if self._lake.create_once(self.path, pin.model_dump_json(indent=2).encode()):
            return pin
        if files is not None:
            self._lake.remove_folder(self.files_of(files))
        winner = self.get()
        assert winner is not None, f"{self.path} was removed while it was written"
        return winner

    def files_of(self, name: str) -> str:
        """The path of what a backend computes by."""
        return f"{self.embeddings.folder}/backends/{name}"

    @property
    def _lake(self) -> Lake:
        return self.embeddings.lake
