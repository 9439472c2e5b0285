"""Photos that come with a request: read with a limit, decoded beside other requests, cropped."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from listing_lens.serving.limits import Budget, Gate
from listing_lens.serving.problems import Problem
from models.images import MIN_SIDE, ImageError, ImageLimits, ImageTooLargeError, decode_image

# What a browser may take to send a photo over a slow line, in seconds.
_UPLOAD_S = 30.0
# What may surround a photo in a form, in bytes.
MORE_THAN_PHOTO = 64 * 1024
PART = "photo"
# Photos of one item that a query may have.
MOST_PHOTOS = 5

_BINARY = {"type": "string", "format": "binary"}


def _body(part: dict[str, Any]) -> dict[str, Any]:
    form = {"type": "object", "required": [PART], "properties": {PART: part}}
    images = ("image/jpeg", "image/png", "image/webp", "image/heic")
    content = {"multipart/form-data": {"schema": form}, **{image: {"schema": _BINARY} for image in images}}
    return {"requestBody": {"required": True, "content": content}}


# Requests' bodies for the OpenAPI: a photo; or photos.
PHOTO_BODY = _body({**_BINARY, "description": "The photo's file."})
PHOTOS_BODY = _body(
    {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": MOST_PHOTOS, "description": "Files of photos."}
)


@dataclass(frozen=True)
class Crop:
    """A part of a photo: left, top, right and bottom, as shares of its width and height."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def parse(cls, text: str) -> Crop:
        """From "left,top,right,bottom". Raises Problem if that is no part of a photo."""
        try:
            left, top, right, bottom = (float(part) for part in text.split(","))
        except ValueError:
            raise _bad_crop() from None
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise _bad_crop()
        return cls(left, top, right, bottom)

    @property
    def least_share(self) -> float:
        return min(self.right - self.left, self.bottom - self.top)

    def of(self, image: Image.Image) -> Image.Image:
        """The part of an image. Raises Problem if it has too few pixels to show anything."""
        width, height = image.size
        box = (
            int(self.left * width),
            int(self.top * height),
            -int(-self.right * width // 1),
            -int(-self.bottom * height // 1),
        )
        part = image.crop(box)
        if min(part.size) < MIN_SIDE:
            raise Problem(422, "Not valid", "crop: too small a part of the photo to show anything", "crop")
        return part


def _bad_crop() -> Problem:
    says = "crop: give left,top,right,bottom as shares of the photo, from 0 to 1, such as 0.1,0.2,0.9,0.8"
    return Problem(422, "Not valid", says, "crop")


@dataclass(frozen=True)
class Photos:
    """Reads the photos of requests.

    Attributes:
        limits: of a photo.
        uploads: how many are received at once.
        gate: how many are decoded at once.
    """

    limits: ImageLimits
    uploads: Gate
    gate: Gate

    async def read(self, request: Request, most: int = MOST_PHOTOS) -> list[bytes]:
        """The encoded photos of a request: its body, or the parts `photo` of a form, `most` at most.

        All together may be as large as one: what is received takes no more memory for several of them.

        Raises:
            Problem: there is none, there are too many, they are too large, or sent too slowly.
            BusyError: too many requests are being received.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self.limits.max_bytes + MORE_THAN_PHOTO:
            raise self._too_large()
        try:
            async with self.uploads.enter(Budget.of(_UPLOAD_S)), asyncio.timeout(_UPLOAD_S):
                if request.headers.get("content-type", "").startswith("multipart/form-data"):
                    return await self._read_form(request, most)
                return [await self._read_body(request, self.limits.max_bytes)]
        except TimeoutError:
            raise Problem(408, "Too slow", f"the photo was not complete after {_UPLOAD_S:g} s", PART) from None

    async def decode(self, data: bytes, min_side: int, crop: Crop | None, budget: Budget) -> Image.Image:
        """The photo, or the part of it, upright in RGB; at least `min_side` where it is that large.

        Raises:
            Problem: it is not a photo, or too large a one.
            BusyError: too many are being decoded.
        """
        side = int(min_side / crop.least_share) if crop else min_side
        async with self.gate.enter(budget):
            try:
                image = await asyncio.to_thread(decode_image, data, self.limits, min_side=side)
            except ImageTooLargeError as err:
                raise Problem(413, "Too large", f"photo: {err}", PART) from None
            except ImageError as err:
                raise Problem(422, "Not valid", f"photo: {err}", PART) from None
        return crop.of(image) if crop else image

    async def _read_body(self, request: Request, most: int) -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > most:
                raise self._too_large()
        return bytes(data)

    async def _read_form(self, request: Request, most: int) -> list[bytes]:
        # The form's parser would write a large file to disk: what is read here is bounded first.
        body = await self._read_body(request, self.limits.max_bytes + MORE_THAN_PHOTO)
        whole = Request(request.scope, _replay(body))
        try:
            async with whole.form(max_files=most, max_fields=20) as form:
                files = [part for part in form.getlist(PART) if isinstance(part, UploadFile)]
                if not files or len(files) < len(form.getlist(PART)):
                    raise Problem(422, "Not valid", "photo: the form has no file of this name", PART)
                return [await file.read() for file in files]
        except HTTPException as err:
            # So Starlette refuses a form that is damaged, or has too many parts.
            raise Problem(422, "Not valid", f"photo: the form cannot be read: {err.detail}", PART) from None

    def _too_large(self) -> Problem:
        return Problem(413, "Too large", f"photo: more than {self.limits.max_bytes:,} bytes", PART)


def _replay(body: bytes):  # type: ignore[no-untyped-def]
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
