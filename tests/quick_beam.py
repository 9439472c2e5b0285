"""Beam, remembering what it otherwise works out anew for every transform of every pipeline.

Which options there are, and which arguments the methods of a `DoFn` have, stays the same as long as the code does. The tests run
many small pipelines, and would spend almost half of the time of each on that.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Signature
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core
from apache_beam.typehints import decorators

_get_signature = decorators.get_signature
_view_as = PipelineOptions.view_as
_signatures: dict[Callable[..., Any], Signature] = {}
# Views of the same options share their values.
_views: WeakKeyDictionary[PipelineOptions, dict[type, PipelineOptions]] = WeakKeyDictionary()


def remember() -> None:
    """Let Beam remember, in this process."""
    decorators.get_signature = core.get_signature = _remembered_signature
    PipelineOptions.view_as = _remembered_view


def _remembered_signature(function: Callable[..., Any]) -> Signature:
    if not isinstance(function, MethodType):
        return _get_signature(function)
    if function.__func__ not in _signatures:
        _signatures[function.__func__] = _get_signature(function)
    return _signatures[function.__func__]


def _remembered_view(options: PipelineOptions, of: type) -> PipelineOptions:
    views = _views.setdefault(options, {})
    if of not in views:
        views[of] = _view_as(options, of)
    return views[of]
