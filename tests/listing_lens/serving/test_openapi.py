"""Requests made up from the service's OpenAPI, valid ones and others: whatever is asked, the service does not fail.

What it answers is what its OpenAPI says: statuses, media types, bodies.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served import AS_SHOP, served, service_of
from small_index import Small

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api(small: Small) -> Iterator[BaseSchema]:
    with served(service_of(small, search_follow_s=1)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "not valid"])
def test_every_operation_is_answered_as_the_openapi_says(api: BaseSchema, mode: GenerationMode) -> None:
    checked = 0
    for result in api.get_all_operations():
        operation = result.ok()

        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def answered(case: Case) -> None:
            case.validate_response(case.call(headers=AS_SHOP), checks=CHECKS)

        try:
            answered()
        except Unsatisfiable:
            # Nothing that could be asked of it is not valid.
            assert mode is GenerationMode.NEGATIVE
        checked += 1
    assert checked >= 8
