"""The dashboard asks for metrics that the search service has, by labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from listing_lens.serving.metrics import Metrics

DASHBOARD = json.loads((Path(__file__).parents[2] / "docker/grafana/search.json").read_text())
# What Prometheus itself adds to every metric.
OF_PROMETHEUS = {"instance", "le"}


def test_every_metric_is_one_of_the_services_and_the_reverse() -> None:
    asked = {name for target in targets() for name in re.findall(r"\blens_\w+", target["expr"])}
    families = list(text_string_to_metric_families(Metrics().text().decode()))
    kept = {family.name for family in families if not family.name.endswith("_created")}
    endings = ("", "_total", "_bucket", "_count", "_sum")
    assert asked <= {f"{name}{ending}" for name in kept for ending in endings}
    missing = {name for name in kept if not any(f"{name}{ending}" in asked for ending in endings)}
    assert not missing


def test_every_label_is_one_of_the_services() -> None:
    labels = {
        label for metric in vars(Metrics()).values() for label in getattr(metric, "_labelnames", ())
    } | OF_PROMETHEUS
    for target in targets():
        for listed in re.findall(r"\bby \(([^)]*)\)", target["expr"]):
            assert {label.strip() for label in listed.split(",")} <= labels, target["expr"]
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells


def targets() -> list[dict[str, str]]:
    return [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
