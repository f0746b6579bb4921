"""docs/reference/sidecar.md documents exactly what a user can set, send, receive or read."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from uellm.api.base import Model
from uellm.cli import evaluate_live, evaluate_queue
from uellm.cli import sidecar as sidecar_command
from uellm.evaluate.measure import measure
from uellm.evaluate.policies import policy_names
from uellm.evaluate.replay import Fate, ReplayResult
from uellm.evaluate.scenario import Job, RequestClass
from uellm.http import Budget, RequestLimits
from uellm.pod_interface import LAME_DUCK_S, PLACEMENT_VARIABLE, STATE_VARIABLE
from uellm.proxying.drain import GRACE_S
from uellm.proxying.metrics import MAX_SERIES, Counter, Gauge, Histogram, NamedFigures
from uellm.proxying.outcome import DROPPED, RETRY_CONNECTION_S, RETRY_ENGINE_S, RETRY_REPLICA_S, STATUS, RequestOutcome
from uellm.proxying.relay import STALL_S
from uellm.sidecar.config import SidecarConfig
from uellm.sidecar.engine.liveness import CANARY_S, STILL_S
from uellm.sidecar.engine.monitor import STALE_S
from uellm.sidecar.prediction.accuracy import Accuracy
from uellm.sidecar.request import background
from uellm.sidecar.request.dispatch import PAUSE_S
from uellm.sidecar.request.retry_after import LEAST_S, MOST_S, UNKNOWN_S
from uellm.sidecar.scheduling import ENGINE_WAIT_S, Options, Scheduler, Targets
from uellm.sidecar.telemetry import help_texts
from uellm.sidecar.telemetry.access_log import Record
from uellm.sidecar.telemetry.attainment import WINDOW_S
from uellm.sidecar.telemetry.tracing import ENDPOINTS
from uellm.sidecar.wire.read import MAX_COMMAS, MAX_NESTED, MAX_PARSED_BYTES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "sidecar.md").read_text()
SOURCES = [
    path.read_text()
    for path in (
        *(ROOT / "operator/uellm/sidecar").rglob("*.py"),
        *(ROOT / "operator/uellm/proxying").rglob("*.py"),
        ROOT / "operator/uellm/cli/sidecar.py",
    )
]


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, without its header."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def named(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def first_cells(title: str) -> list[str]:
    return [name for row in rows(title) for name in named(row[0])]


def flags(command: Any) -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    command.add_arguments(parser)
    return {action.option_strings[0] for action in parser._actions}


def words(names: list[str]) -> set[str]:
    return {name.split()[0] for name in names}


def test_every_flag_and_variable_of_the_command_is_there_and_no_other():
    variables = {PLACEMENT_VARIABLE, STATE_VARIABLE, *ENDPOINTS}
    assert not any(re.search(r'"UELLM_[A-Z_]+"', source) for source in SOURCES), "variables are in pod_interface"
    assert words(first_cells("Command line and environment")) == flags(sidecar_command) | variables


@pytest.mark.parametrize(("command", "column"), [(evaluate_queue, 1), (evaluate_live, 2)], ids=["queue", "live"])
def test_every_flag_of_the_evaluations_is_there_and_no_other(command, column):
    documented = {
        name.split()[0] for row in rows("Evaluation") if row[column] for name in named(row[0]) if name.startswith("-")
    }
    assert documented == flags(command)


def test_every_policy_and_guard_of_the_evaluation_is_there():
    text = section("Evaluation") + section("Configuration")
    patterns = [name.replace("*", "") for name in named(text) if name.endswith("-*")]
    for name in policy_names():
        assert f"`{name}`" in text or any(name.startswith(pattern) for pattern in patterns), name
    assert all(guard in text for guard in evaluate_queue.GUARDS)


def keys(model: type[Model], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        inner = [each for each in (field.annotation, *get_args(field.annotation)) if isinstance(each, type)]
        models = [each for each in inner if issubclass(each, Model)]
        listed = get_origin(field.annotation) is tuple
        if models:
            if listed:
                yield key
            yield from keys(models[0], f"{key}[]." if listed else f"{key}.")
        else:
            yield key


def test_every_key_of_the_configuration_is_there_and_no_other():
    assert sorted(first_cells("Configuration")) == sorted(keys(SidecarConfig))


def test_every_outcome_is_there_with_its_status_and_reason():
    documented = {named(outcome)[0]: (status, named(reason)) for outcome, status, _, reason in rows("Outcomes")}
    of_the_gateway = {RequestOutcome.MODEL_NOT_FOUND, RequestOutcome.MODEL_AMBIGUOUS}
    assert set(documented) == set(RequestOutcome) - of_the_gateway
    for outcome, (status, reasons) in documented.items():
        assert reasons == [DROPPED[outcome]] if outcome in DROPPED else reasons == []
        assert outcome not in STATUS or str(STATUS[outcome]) in status


def test_every_header_of_ours_is_there():
    named_in_code = {
        name for source in SOURCES for name in re.findall(r'"(x-(?:uellm|llm-d|slo|gateway)[a-z-]*)"', source)
    }
    assert len(named_in_code) >= 12
    documented = set(first_cells("Headers of an answer")) | set(named(section("Headers of a request")))
    assert named_in_code <= documented
    assert {name for name in documented if name.startswith(("x-uellm", "x-llm-d", "x-slo"))} <= named_in_code


async def test_every_metric_is_there_with_its_labels(harness):
    documented = {name: row[1] for row in rows("Metrics") for name in named(row[0])}
    figures = harness.sidecar.figures.metrics
    single = {each.name: ", ".join(each.labels) for each in figures if isinstance(each, Counter | Gauge | Histogram)}
    groups = {f"{each.prefix}*": "" for each in figures if isinstance(each, NamedFigures)}
    assert len(groups) == 3
    assert documented == single | groups


@pytest.mark.parametrize(
    ("prefix", "described", "there"),
    [
        ("uellm_scheduler_", help_texts.SCHEDULER, set(Scheduler().figures())),
        ("uellm_predictor_", help_texts.PREDICTOR, set(Accuracy.__dataclass_fields__)),
    ],
)
async def test_every_figure_that_is_looked_up_says_what_it_is(prefix, described, there):
    (row,) = (row for row in rows("Metrics") if f"`{prefix}*`" in row[0])
    assert set(described) == there
    assert set(named(row[2])) == exposed(there)
    assert all(text.endswith(".") for text in described.values())


def exposed(names: set[str]) -> set[str]:
    return {f"{name}_total" if name in help_texts.COUNTERS else name for name in names}


async def test_every_figure_of_the_learned_model_says_what_it_is(harness):
    harness.sidecar.lengths.learned.child.wanted = True
    (row,) = (row for row in rows("Metrics") if "`uellm_learned_predictor_*`" in row[0])
    there = set(harness.sidecar.lengths.learned.figures())
    assert set(help_texts.LEARNED) == there
    assert set(named(row[2])) == exposed(there)


async def test_a_scrape_says_of_every_metric_what_it_is(harness):
    async with harness.client.get(harness.management("/metrics")) as response:
        helps = [line for line in (await response.text()).splitlines() if line.startswith("# HELP uellm_")]
    assert len(helps) > 20
    assert [line for line in helps if len(line.split(" ", 3)) < 4 or not line.endswith(".")] == []


async def test_every_route_of_the_metrics_port_is_there_and_no_other(harness):
    there = {f"{method} {path}" for method, path in harness.sidecar._management._routes}
    assert set(first_cells("The metrics port")) == there


def test_every_field_of_the_access_log_is_there_in_its_order():
    fields = list(json.loads(Record("GET", "/", 0.0).to_json()))
    documented = named(section("The access log"))
    assert documented == fields


def test_every_key_of_the_evaluations_json_is_there():
    job = Job(0, 0.0, 1, 1, RequestClass(Targets("a"), 1.0), "", (), None)
    found = measure([job], ReplayResult([Fate(0.0)]))
    documented = named(section("Evaluation").partition("JSON:")[2])
    assert set(found) <= set(documented)
    assert set(found["ttftSeconds"]) <= set(documented)
    assert {"policy", "speed", "seed", "maxBatchedTokens", "trace", "requests", "results", "bound"} <= set(documented)


def test_every_limit_is_there_as_it_is():
    limits, kib, mib = RequestLimits(), 1024, 1024 * 1024
    documented = " ".join(section("Limits").split())
    for text in (
        f"Request line {limits.line_bytes // kib} KiB, headers {limits.headers_bytes // kib} KiB",
        f"{limits.headers} of them",
        f"Headers beyond {limits.ahead_bytes // kib} KiB",
        f"body above {MAX_PARSED_BYTES // mib} MiB, or with more than {MAX_NESTED:,} objects and lists or "
        f"{MAX_COMMAS:,} commas, is sent",
        f"at {limits.body_bytes_per_s / kib:g} KiB/s",
        f"body {limits.body_bytes // mib} MiB, all bodies together {Budget().limit_bytes // mib} MiB",
        f"{limits.connections:,} connections",
        f"headers must be there within {limits.header_deadline_s:g} s, its body within {limits.body_deadline_s:g} s",
        f"reads nothing of its answer for {STALL_S:g} s is cut off",
        f"idle connection closed after {limits.idle_s:g} s",
        f"do not change for {STILL_S:g} s",
        f"hanging {CANARY_S:g} s later",
        f"older than {STALE_S:g} s counts as full",
    ):
        assert text in documented
    assert Options().max_queued_bytes == Budget().limit_bytes
    assert f"{MAX_SERIES} series" in section("Metrics")


def test_every_time_of_draining_and_waiting_is_there_as_it_is():
    port = section("The metrics port")
    assert f"{LAME_DUCK_S:g} s later no new requests" in port
    assert f"after {GRACE_S:g} s at most" in port
    assert f"last {WINDOW_S:g} s" in port
    assert f"within {ENGINE_WAIT_S:g} s" in section("Outcomes")
    kept = section("Responses that the engine keeps")
    assert f"for {background.MOST_S:g} s at most" in kept
    assert f"waits {background.FETCH_S:g} s after the end" in kept
    assert (background.POLL_S, f"more\nthan {background.MOST_POLLS_PER_S}." in kept) == (1.0, True)


def test_every_time_to_come_back_is_there_as_it_is():
    documented = " ".join(section("When to come back").split())
    for bounds_s, text in (
        ((LEAST_S, MOST_S), "It is {:g} to {:g} s"),
        (UNKNOWN_S, "before a rate is known it is {:g} to {:g} s"),
        (RETRY_REPLICA_S, "retry time of a 503 is {:g} to {:g} s while a replica stops"),
        (RETRY_ENGINE_S, "{:g} to {:g} s if the engine is not ready"),
        (RETRY_CONNECTION_S, "{:g} to {:g} s for too many connections"),
    ):
        assert text.format(*bounds_s) in documented
    assert f"fails again within {PAUSE_S:g} s, it is paused for {PAUSE_S:g} s" in " ".join(section("Outcomes").split())
