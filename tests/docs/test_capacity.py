"""The plan's arithmetic: each row of its tables that shows a calculation shows its result."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from pathlib import Path

import pytest

_PAGE = Path(__file__).parents[2] / "docs" / "capacity.md"
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "min": 60, "h": 3600}
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _calculations() -> list[tuple[str, str, str]]:
    """(what, arithmetic, result) of the rows that have all three."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in _PAGE.read_text().splitlines()]
    found = [(row[0], row[1], row[2]) for row in rows if len(row) == 4 and row[1] and re.match(r"[\d,.]", row[2])]
    return [row for row in found if not row[1].startswith("-")]


def _value(arithmetic: str) -> float:
    plain = re.sub(r"[,B]", "", arithmetic).replace("×", "*").replace("÷", "/").replace("−", "-")

    def of(node: ast.AST) -> float:
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](of(node.left), of(node.right))
        assert isinstance(node, ast.Constant), f"{arithmetic} is no arithmetic"
        return float(node.value)

    return of(ast.parse(plain.strip(), mode="eval").body)


def test_there_is_something_to_check() -> None:
    assert len(_calculations()) > 40


@pytest.mark.parametrize(("arithmetic", "result"), [row[1:] for row in _calculations()])
def test_the_arithmetic_gives_the_result(arithmetic: str, result: str) -> None:
    number, _, unit = result.partition(" ")
    assert _value(arithmetic) / _UNITS[unit] == pytest.approx(float(number.replace(",", "")), rel=0.02)
