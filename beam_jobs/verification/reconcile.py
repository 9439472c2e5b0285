"""Every item of the lake is looked up in the index, and the vectors of some or all of them are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from beam_jobs.verification.config import EXAMPLES, MOST_REPAIRED, Config
from beam_jobs.verification.probes import Probed
from beam_jobs.verification.rows import FIELDS, Rows
from beam_jobs.verification.surplus import Surplus
from listing_lens import progress
from listing_lens.lake.records import SEARCHABLE
from listing_lens.search.index import Held
from listing_lens.search.verification import Check

_QUOTED_CHARACTERS = 40


@dataclass(frozen=True)
class Reconciled:
    """What the comparison of some items has found.

    Attributes:
        items: how many were looked up.
        findable: how many of them a search of the index can find.
        differing: how many are not in the index as in the lake.
        refused: how many would have been among those, but for Elasticsearch having refused them.
        compared: how many vectors were compared.
        turned: how many of them are not the lake's.
        least_cosine: between a vector of the index and of the lake.
        examples, vector_examples: what is wrong with some.
        to_repair: ids of what is differing or turned; not all of them if there are more than can be repaired.
    """

    items: int = 0
    findable: int = 0
    differing: int = 0
    refused: int = 0
    compared: int = 0
    turned: int = 0
    least_cosine: float = 1.0
    examples: tuple[str, ...] = ()
    vector_examples: tuple[str, ...] = ()
    to_repair: frozenset[str] = frozenset()

    def __add__(self, other: Reconciled) -> Reconciled:
        ids = self.to_repair | other.to_repair
        return Reconciled(
            items=self.items + other.items,
            findable=self.findable + other.findable,
            differing=self.differing + other.differing,
            refused=self.refused + other.refused,
            compared=self.compared + other.compared,
            turned=self.turned + other.turned,
            least_cosine=min(self.least_cosine, other.least_cosine),
            examples=tuple(sorted(self.examples + other.examples)[:EXAMPLES]),
            vector_examples=tuple(sorted(self.vector_examples + other.vector_examples)[:EXAMPLES]),
            to_repair=ids if len(ids) <= MOST_REPAIRED else frozenset(sorted(ids)[: MOST_REPAIRED + 1]),
        )


def sum_reconciled(parts: Iterable[Reconciled]) -> Reconciled:
    """All of them together."""
    return sum(parts, Reconciled())


class Reconcile(beam.DoFn):
    """`Rows` → `Reconciled`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def setup(self) -> None:
        self._search_index = self._config.cluster.connect()

    def process(self, rows: Rows, probed: Probed) -> Iterator[Reconciled]:
        yield self._items(rows) + self._vectors(rows, probed)
        progress.advance("verified", len(rows.item_ids))

    def teardown(self) -> None:
        self._search_index.client.close()

    def _items(self, rows: Rows) -> Reconciled:
        wanted = dict(zip(rows.item_ids, map(Held, rows.versions, map(dict, rows.fields)), strict=True))
        findable, problems = self._look_up(wanted)
        if problems:
            # An index that is being fed may have changed between the two lookups.
            self._search_index.finish_load(self._config.index.name)
            again, problems = self._look_up({item_id: wanted[item_id] for item_id in problems})
            findable |= again
        differing = {name: text for name, text in problems.items() if not self._is_refused(name, wanted[name])}
        return Reconciled(
            items=len(wanted),
            findable=len(findable),
            differing=len(differing),
            refused=len(problems) - len(differing),
            examples=tuple(f"{name} {text}" for name, text in sorted(differing.items())[:EXAMPLES]),
            to_repair=frozenset(differing),
        )

    def _is_refused(self, item_id: str, wanted: Held) -> bool:
        return (item_id, wanted.version) in self._config.refused

    def _look_up(self, wanted: Mapping[str, Held]) -> tuple[set[str], dict[str, str]]:
        """The ids of the items that a search can find, and what is wrong with those that differ."""
        name = self._config.index.name
        held = self._search_index.documents(name, list(wanted), FIELDS)
        findable = self._search_index.with_vector(name, list(held)) if held else set()
        problems = {
            item_id: problem
            for item_id, one in wanted.items()
            if (problem := problem_of(one, held.get(item_id), findable=item_id in findable))
        }
        return findable, problems

    def _vectors(self, rows: Rows, probed: Probed) -> Reconciled:
        places = [
            place
            for place, item_id in enumerate(rows.with_vector)
            if self._config.every_vector or item_id in probed.sampled
        ]
        if not places:
            return Reconciled()
        versions = dict(zip(rows.item_ids, rows.versions, strict=True))
        held = self._search_index.vectors(self._config.index.name, [rows.with_vector[place] for place in places])
        cosines = {}
        for place in places:
            item_id = rows.with_vector[place]
            version, vector = held.get(item_id, (0, None))
            if version == versions[item_id]:
                cosines[item_id] = 0.0 if vector is None else float(vector @ rows.vectors[place])
        turned = {item_id: cosine for item_id, cosine in cosines.items() if cosine < self._config.least_cosine}
        return Reconciled(
            compared=len(cosines),
            turned=len(turned),
            least_cosine=min(cosines.values(), default=1.0),
            vector_examples=tuple(f"{name} has a cosine of {turned[name]:.4f}" for name in sorted(turned)[:EXAMPLES]),
            to_repair=frozenset(turned),
        )


def problem_of(wanted: Held, held: Held | None, *, findable: bool) -> str | None:
    """What is wrong with an item as an index holds it; None if nothing is. A newer version than wanted may be anything."""
    if held is None:
        # A rebuild leaves out what was sold long ago.
        return "is missing" if _is_searchable(wanted) else None
    if held.version < wanted.version:
        return "is older than in the lake"
    if held.version == wanted.version and (differing := _differing(wanted.fields, held.fields)):
        return differing
    if findable != _is_searchable(held):
        return f"is {held.fields['status']}, but a search {'finds it' if findable else 'cannot find it'}"
    return None


def _is_searchable(item: Held) -> bool:
    return item.fields["status"] in SEARCHABLE


def _differing(wanted: Mapping[str, Any], held: Mapping[str, Any]) -> str | None:
    if wanted["status"] != held["status"]:
        return f"is {held['status']} instead of {wanted['status']}"
    others = [
        f"{name} {_brief(held[name])} instead of {_brief(wanted[name])}"
        for name in FIELDS
        if held[name] != wanted[name]
    ]
    return f"has the {' and the '.join(others)}" if others else None


def _brief(value: object) -> str:
    return repr(value)[:_QUOTED_CHARACTERS]


def check_reconciled(reconciled: Reconciled, surplus: Surplus) -> Check:
    """Whether the index holds what the lake holds, and nothing else."""
    says = f"{reconciled.differing:,} of {reconciled.items:,} items differ from the lake"
    says += f", and {surplus.count:,} searchable documents are not in it"
    if surplus.ahead:
        says += f"; {surplus.ahead:,} documents are newer than what is embedded"
    if reconciled.refused:
        says += f"; {reconciled.refused:,} items were refused by Elasticsearch"
    faults = reconciled.differing + surplus.count
    examples = reconciled.examples + tuple(f"{one.item_id} is not in the lake" for one in surplus.documents[:EXAMPLES])
    return Check(name="reconciled", passed=not faults, says=says, measured=faults, threshold=0, examples=examples)


def check_vectors(reconciled: Reconciled, least_cosine: float) -> Check:
    """Whether the vectors that were compared are those of the lake."""
    if not reconciled.compared:
        return Check(name="vectors", passed=None, says="left out: there are no items of which both hold a vector")
    return Check(
        name="vectors",
        passed=not reconciled.turned,
        says=f"{reconciled.turned:,} of {reconciled.compared:,} vectors differ from those of the lake",
        measured=reconciled.least_cosine,
        threshold=least_cosine,
        examples=reconciled.vector_examples,
    )
