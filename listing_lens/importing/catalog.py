"""Imports a user's own catalog into the lake: all of it, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from listing_lens.errors import LensError
from listing_lens.importing.file import read_source
from listing_lens.importing.row import Row, read_row
from listing_lens.importing.spool import Spool
from listing_lens.lake.records import LISTING_SCHEMA, Listing
from listing_lens.lake.window import Window
from listing_lens.lake.windows import LISTINGS, ROWS, Lake, Manifest

_BATCH_ROWS = 4096
_BAD_ROWS_SHOWN = 20
# Each window costs a file and, later, a run of each job: more than this means a typo in a date.
_MOST_WINDOWS = 20_000
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ABSOLUTE = ("gs://", "http://", "https://")


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import."""

    # Rows written, by window, in order of time.
    windows: dict[Window, int]
    # Rows whose image is not in the folder: they are imported, and will become dead letters.
    missing_images: int


def read_step(text: str) -> timedelta:
    """``1d``, ``6h`` or ``30m``, the length of a window.

    Raises:
        LensError: anything else.
    """
    match = re.fullmatch(r"(\d{1,4})([mhd])", text)
    if not match or int(match[1]) == 0:
        raise LensError(f"--window {text} is not a length of time: write it as 1d, 6h or 30m")
    return int(match[1]) * _UNITS[match[2]]


def import_catalog(
    lake: Lake,
    file: Path,
    images: Path | None,
    step: timedelta,
    now: datetime,
    *,
    replace: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Imported:
    """Check every row of a file, then write its windows to the lake. Memory is bounded by a batch.

    Args:
        lake: the target; call `check()` on it first.
        file: CSV or Parquet with the columns of `Row`.
        images: the folder that relative image paths start from.
        step: length of a window; windows begin at multiples of it since 1970-01-01T00:00:00Z.
        now: the manifests' time of creation.
        replace: overwrite windows that are not empty.
        progress: called with the rows read so far.

    Raises:
        LensError: the file cannot be read, a row is invalid (then nothing is written), or a window is not empty.
    """
    if images is not None and not images.is_dir():
        raise LensError(f"--images {images} is not a folder")
    with TemporaryDirectory(prefix="listing-lens-import-") as scratch, Spool(Path(scratch) / "rows.sqlite") as spool:
        missing_images = _spool_rows(file, images, spool, progress)
        windows = _windows(file, spool, step)
        _check_free(lake, windows, replace)
        # Files first: they count only once their manifests name them.
        manifests = [_write_window(lake, spool, window, images, file.name, now) for window in windows]
        for manifest in manifests:
            lake.commit(manifest)
    counts = {window: manifest.counts[ROWS] for window, manifest in zip(windows, manifests, strict=True)}
    return Imported(counts, missing_images)


def _spool_rows(file: Path, images: Path | None, spool: Spool, progress: Callable[[int], None]) -> int:
    """Check all rows and keep them; returns how many images are missing."""
    root = images.resolve() if images else None
    bad_count, bad_shown, missing, rows = 0, [], 0, 0
    for rows, numbered in enumerate(read_source(file), start=1):
        try:
            if numbered.values is None:
                raise ValueError("has not as many cells as the header")
            row = read_row(numbered.values)
            missing += not _image_is_there(row.image, root)
            if not spool.add(_listing(row)):
                raise ValueError(f"item_id {row.item_id!r} with updated_at {row.updated_at.isoformat()} came before")
        except ValueError as err:
            bad_count += 1
            if bad_count <= _BAD_ROWS_SHOWN:
                bad_shown.append(f"  {numbered.place}: {err}")
        if rows % 1000 == 0:
            progress(rows)
    progress(rows)
    if bad_count:
        more = [f"  … and {bad_count - _BAD_ROWS_SHOWN} more"] if bad_count > _BAD_ROWS_SHOWN else []
        heading = f"{file.name}: {bad_count} of {rows} rows cannot be imported, so none was:"
        raise LensError("\n".join([heading, *bad_shown, *more]))
    return missing


def _listing(row: Row) -> Listing:
    return Listing(
        item_id=row.item_id,
        title=row.title,
        category=row.category,
        price=row.price,
        image_uri=row.image,
        status=row.status,
        created_at=row.created_at,
        updated_at=row.updated_at,
        seller_id=row.seller_id,
        product_id=row.product_id,
    )


def _image_is_there(image: str, root: Path | None) -> bool:
    """Whether an image is in the folder; URLs are not checked.

    Raises:
        ValueError: the path leads out of the folder, or the URL's scheme is not supported.
    """
    if "://" in image:
        if not image.startswith(_ABSOLUTE):
            raise ValueError(f"image: {image!r} is not an address that can be read: {', '.join(_ABSOLUTE)}")
        return True
    if root is None:
        raise ValueError(f"image: {image!r} is a relative path: say with --images where it starts from")
    path = Path(image)
    try:
        target = (root / path).resolve()
        inside = not path.is_absolute() and ".." not in path.parts and target.is_relative_to(root)
        there = inside and target.is_file()
    except (OSError, RuntimeError, ValueError) as err:
        # A name that is too long, circular links, a null byte.
        raise ValueError(f"image: {image!r} is not a path: {err}") from err
    if not inside:
        raise ValueError(f"image: {image!r} leads out of the images' folder")
    return there


def _windows(file: Path, spool: Spool, step: timedelta) -> list[Window]:
    """The windows that cover all rows, without gaps."""
    span = spool.span()
    if span is None:
        raise LensError(f"{file.name} has no rows")
    first, last = span
    start = _EPOCH + (first - _EPOCH) // step * step
    count = (last - start) // step + 1
    if count > _MOST_WINDOWS:
        raise LensError(
            f"{file.name} spans {count} windows, from {first.isoformat()} to {last.isoformat()}: "
            "check these dates, or give a longer --window"
        )
    return list(Window(start, start + count * step).split(step))


def _check_free(lake: Lake, windows: list[Window], replace: bool) -> None:
    """Refuse to overwrite anything unless `replace`."""
    wanted = set(windows)
    for present in lake.windows(LISTINGS, Window(windows[0].start, windows[-1].end)):
        if present not in wanted:
            raise LensError(
                f"the lake {lake.root} holds {LISTINGS} of {present}, which is not one of the windows to be written: "
                "give the same --window as then, or set LENS_LAKE to another place"
            )
        if not replace and lake.manifest(LISTINGS, present).counts.get(ROWS) != 0:
            raise LensError(
                f"the lake {lake.root} holds {LISTINGS} of {present} already: give --replace to write over them"
            )


def _write_window(
    lake: Lake, spool: Spool, window: Window, images: Path | None, source: str, now: datetime
) -> Manifest:
    """Write a window's rows to a file that no manifest names yet; an empty window gets no file."""
    name = f"{lake.new_attempt(now)}-00000.parquet"
    batches = _batches(spool.within(window))
    first = next(batches, None)
    count = 0
    if first is not None:
        with (
            lake.open_for_writing(LISTINGS, window, name) as target,
            pq.ParquetWriter(target, LISTING_SCHEMA, compression="zstd") as writer,
        ):
            batch: pa.RecordBatch | None = first
            while batch is not None:
                writer.write_batch(batch)
                count += batch.num_rows
                batch = next(batches, None)
    return Manifest(
        dataset=LISTINGS,
        window=window.name,
        files={ROWS: [name] if count else []},
        counts={ROWS: count},
        image_root=str(images.resolve()) if images else None,
        parameters={"catalog": "imported", "file": source},
        created_at=now,
    )


def _batches(listings: Iterator[Listing]) -> Iterator[pa.RecordBatch]:
    while chunk := list(islice(listings, _BATCH_ROWS)):
        yield pa.RecordBatch.from_pylist([asdict(listing) for listing in chunk], schema=LISTING_SCHEMA)
