"""docs/reference/gateway.md has every metric, outcome and field of the log, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

from uellm.gateway import stored
from uellm.gateway.telemetry import GatewayRecord
from uellm.proxying.outcome import STATUS, RequestOutcome

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "gateway.md").read_text()
OF_SIDECARS = {RequestOutcome.SHED, RequestOutcome.FORBIDDEN}
"""Outcomes that only a sidecar gives."""


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


async def test_every_metric_is_there_with_its_labels(harness) -> None:
    documented = {row[0].strip("`"): [label for label in row[1].split(", ") if label] for row in rows("Metrics")}
    metrics = harness.gateway.figures.metrics
    assert documented == {metric.name: list(metric.labels) for metric in metrics}


def test_every_outcome_is_there_with_its_status() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows("Outcomes")}
    assert set(documented) == set(RequestOutcome) - OF_SIDECARS
    for outcome, status in documented.items():
        assert outcome not in STATUS or str(STATUS[RequestOutcome(outcome)]) in status


def test_how_responses_are_found_is_there() -> None:
    documented = section("Responses that a replica keeps")
    assert f"last {stored.MOST_REMEMBERED:,} responses" in documented
    assert f"at {stored.MOST_ASKED} of them, all at once, for {stored.ASK_S:g} s" in documented


def test_every_field_of_the_access_log_is_there() -> None:
    fields = json.loads(GatewayRecord("GET", "/", 0.0).to_json())
    assert re.findall(r"`(\w+)`", section("The access log")) == list(fields)
