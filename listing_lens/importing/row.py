"""One row of a user's own catalog, validated on input."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isnan
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from listing_lens.lake.records import MAX_ID_BYTES, Status

_YEARS = range(1970, 2112)
_CATEGORY_DEPTH = 20


def _read_id(item_id: str) -> str:
    if len(item_id.encode()) > MAX_ID_BYTES:
        raise ValueError(f"is longer than {MAX_ID_BYTES} bytes")
    if not item_id.isprintable():
        raise ValueError("has characters that cannot be printed")
    return item_id


def _split_category(value: Any) -> Any:
    """``A > B > C`` or ``A/B/C``; a Parquet file may hold a list."""
    return value.split(">" if ">" in value else "/") if isinstance(value, str) else value


def _read_moment(value: Any) -> datetime:
    """ISO 8601; without a zone it is UTC. Numbers are refused: seconds cannot be told from milliseconds."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError("is not a date of ISO 8601 such as 2026-01-31T09:30:00Z") from None
    if not isinstance(value, datetime):
        raise ValueError("is not a date and time")
    if value.year not in _YEARS:
        raise ValueError(f"is not between the years {_YEARS[0]} and {_YEARS[-1]}")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _read_status(value: Any) -> Status:
    try:
        return Status(value.strip() if isinstance(value, str) else value)
    except ValueError:
        raise ValueError(f"is not one of {', '.join(Status)}") from None


def _read_code(value: Any) -> Any:
    """An empty cell means none. With gaps, a column of whole numbers becomes one of floats, with NaN in the gaps."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None if isnan(value) else value
    return None if isinstance(value, str) and not value.strip() else value


Text = Annotated[str, Field(min_length=1)]
Moment = Annotated[datetime, BeforeValidator(_read_moment)]


class Row(BaseModel):
    """The columns of a catalog file; its fields' names are the columns' names."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, coerce_numbers_to_str=True)

    item_id: Annotated[Text, AfterValidator(_read_id)]
    title: Text
    category: Annotated[
        tuple[Text, ...], BeforeValidator(_split_category), Field(min_length=1, max_length=_CATEGORY_DEPTH)
    ]
    price: Annotated[int, Field(ge=0, lt=10**15)]
    image: Text
    status: Annotated[Status, BeforeValidator(_read_status)]
    created_at: Moment
    updated_at: Moment
    seller_id: Annotated[str | None, BeforeValidator(_read_code)] = None
    product_id: Annotated[str | None, BeforeValidator(_read_code)] = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.updated_at < self.created_at:
            raise ValueError("updated_at is earlier than created_at")
        return self


COLUMNS = tuple(Row.model_fields)
# A file may lack the others.
REQUIRED = tuple(name for name, field in Row.model_fields.items() if field.is_required())


def read_row(values: dict[str, Any]) -> Row:
    """Check one row.

    Raises:
        ValueError: what is wrong with it, by its column.
    """
    try:
        return Row.model_validate(values)
    except ValidationError as err:
        first = err.errors()[0]
        column = str(first["loc"][0]) if first["loc"] else ""
        reason = first["msg"].removeprefix("Value error, ")
        if not column:
            raise ValueError(reason) from None
        given = repr(values[column])
        raise ValueError(f"{column}: {reason} (given: {given if len(given) <= 80 else given[:77] + '…'})") from None
