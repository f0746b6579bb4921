"""README, CONTRIBUTING and docs/ agree with the code: links, fields, commands, reasons, names, paths, an example."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from uellm.api.node_labels import OwnLabelKeys
from uellm.cli.main import COMMANDS, main
from uellm.hardware import GPU_RESOURCE

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "operator" / "uellm"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "devcluster" / "README.md"])
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
LINK = re.compile(r"\]\(([^)\s]+)\)")
REASON_GIVERS = {"Condition", "EngineReadiness", "Failure", "NoGPUs", "Obstacle", "PlanError", "SourceError"}
REASON_GIVERS |= {"LookUpRefusal"}
REASONING_ROOMS = {"hub", "launcher", "planner", "profiler", "reconcile"}
NOT_REASONS = {"True", "False", "Unknown", "Ready", "Reconciling", "Stalled", "Pods"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"^(?: {4}).*$", "", text, flags=re.M)


def links(page: Path) -> Iterator[str]:
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", without_code(page.read_text()))):
        if not target.startswith(("https://", "http://", "mailto:")):
            yield target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), flags=re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def first_cells(text: str) -> list[str]:
    """The names in backquotes in the first cell of each row of a text's tables."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", row)[0] for row in rows]


def section(page: Path, title: str) -> str:
    return page.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@cache
def sources() -> dict[Path, str]:
    return {path: path.read_text() for path in PACKAGE.rglob("*.py") if "_pb2" not in path.name}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading(page):
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_an_anchor_is_the_heading_in_lower_case_with_hyphens_and_without_punctuation(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# What's `uellm plan`?\n\n## A, b\n\n    # no heading\n\n```sh\n# no heading\n```\n")
    assert anchors(page) == {"whats-uellm-plan", "a-b"}


def test_the_index_names_every_page_of_the_documentation():
    listed = {(DOCS / target).resolve() for target in links(DOCS / "README.md")}
    assert [name_of(page) for page in DOCS.rglob("*.md") if page not in listed | {DOCS / "README.md"}] == []


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


@pytest.mark.parametrize("name", ["llmservice.md", "gpunodeprofile.md", "gpunodeclass.md", "commands.md"])
def test_fields_and_commands_are_documented_as_they_are(rendered, name):
    committed = (DOCS / "reference" / name).read_text()
    assert committed == rendered[name], f"docs/reference/{name} is out of date: run `make reference`"


def code(page: Path) -> str:
    """Indented blocks, fenced blocks and words in backquotes, without the output of commands."""
    text = page.read_text()
    lines = [line.strip() for line in text.splitlines() if line.startswith(("    uellm ", "    kubectl uellm "))]
    return "\n".join([*lines, *re.findall(r"`(uellm [^`]+)`", text)])


def test_every_command_in_the_documentation_exists():
    named = {word for page in PAGES for word in re.findall(r"\buellm ([a-z][a-z-]+)\b(?= |`|\n)", code(page))}
    assert named >= {"plan", "calibrate", "evaluate", "cluster"}
    assert named - set(COMMANDS) == set()


def reasons_given() -> set[str]:
    """CamelCase words that the code passes as the reason of a condition."""
    found = set()
    for path, text in sources().items():
        if path.relative_to(PACKAGE).parts[0] not in REASONING_ROOMS:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in REASON_GIVERS:
                words = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                found |= {word for word in words if isinstance(word, str) and re.fullmatch(r"[A-Z][A-Za-z]+", word)}
    return found - NOT_REASONS


def test_every_reason_of_a_condition_is_on_the_page_for_troubleshooting():
    given = reasons_given()
    assert len(given) > 35, "the code makes reasons in another way: look for that, too"
    assert given - set(first_cells((DOCS / "how-to" / "troubleshoot.md").read_text())) == set()


def test_every_reason_on_the_page_for_troubleshooting_is_in_the_code():
    strings = {word for text in sources().values() for word in re.findall(r'"([A-Z][A-Za-z]+)"', text)}
    assert set(first_cells((DOCS / "how-to" / "troubleshoot.md").read_text())) - strings == set()


def test_every_label_and_annotation_is_on_the_page_of_interfaces_and_no_other():
    page = DOCS / "reference" / "interfaces.md"
    told = {*first_cells(section(page, "Labels")), *first_cells(section(page, "Annotations"))}
    literal = re.compile(r'"(?:(app\.kubernetes\.io|uellm\.io)|\{GROUP\})/([a-z-]+)"')
    found = {match for text in sources().values() for match in literal.findall(text)}
    written = {f"{group or 'uellm.io'}/{name}" for group, name in found}
    # The components that send events, and a finalizer that is never set, have names of the same form.
    assert told == written - {"uellm.io/controller", "uellm.io/profiler", "uellm.io/unused"}


def test_every_node_label_is_on_the_page_of_interfaces():
    page = DOCS / "reference" / "interfaces.md"
    keys = OwnLabelKeys.of(GPU_RESOURCE)
    assert set(first_cells(section(page, "Node labels"))) == {getattr(keys, each.name) for each in fields(keys)}


def test_the_ports_on_the_page_of_interfaces_are_those_of_the_code_and_the_chart():
    rows = section(DOCS / "reference" / "interfaces.md", "Ports").splitlines()[3:]
    ports = {int(number) for row in rows if row for number in re.findall(r"\d+", row.split("|")[2])}
    text = "\n".join([*sources().values(), *(path.read_text() for path in (ROOT / "charts").rglob("*.yaml"))])
    assert len(ports) == 15
    assert [port for port in ports if not re.search(rf"\b{port}\b", text)] == []


METRICS = ("controller/metrics.py", "extender/metrics.py", "profiler/metrics.py", "metrics/api_calls.py")


def test_every_metric_of_the_operator_s_own_processes_is_on_the_page_for_monitoring_and_no_other():
    text = "\n".join((PACKAGE / path).read_text() for path in METRICS)
    counters = set(re.findall(r'Counter\(\s*"(uellm_[a-z_]+)"', text))
    named = {name + "_total" if name in counters else name for name in re.findall(r'"(uellm_[a-z_]+)"', text)}
    told = first_cells((DOCS / "how-to" / "monitor.md").read_text())
    assert len(named) > 20
    assert {name for name in told if name.startswith("uellm_")} == named


def test_every_alert_is_on_the_page_for_monitoring_and_no_other():
    alerts = re.findall(r"alert: (\w+)", (ROOT / "charts" / "uellm" / "files" / "alerts.yaml").read_text())
    told = first_cells((DOCS / "how-to" / "monitor.md").read_text())
    assert [name for name in told if name.startswith("UELLM")] == alerts


def test_the_example_s_plan_is_the_one_that_the_readme_shows(capsys):
    example = [str(DOCS / "examples" / name) for name in ("llama-3.3-70b.yaml", "nodes.yaml")]
    assert main(["plan", "-f", example[0], "--profiles", example[1], "-o", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["tensor"], plan["pipeline"], plan["layers"]) == (2, 2, [56, 24])
    picture = (DOCS / "images" / "plan.svg").read_text()
    assert "tensor 2 x pipeline 2, layers 56,24" in picture
    assert all(f"layers {layers}" in picture for layers in ("0-55", "56-79"))


def test_every_path_in_contributing_exists():
    words = re.findall(
        r"`((?:operator|devcluster|docs|tests|charts|manifests|images|scripts|bench)/[^`\s*]*)`", CONTRIBUTING
    )
    assert len(words) > 15
    assert [word for word in words if not (ROOT / word).exists()] == []


def test_the_map_in_contributing_names_every_room_of_the_package():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    nested = {
        f"{room}/{path.name}"
        for room in ("planner", "reconcile", "sidecar")
        for path in (PACKAGE / room).iterdir()
        if (path / "__init__.py").exists()
    }
    inside = CONTRIBUTING.partition("Inside `operator/uellm/`:")[2]
    mapped = set(re.findall(r"^\| `([a-z_/]+)/` \|", inside, flags=re.M))
    assert mapped == rooms | nested


@pytest.mark.parametrize("name", ["scaled-object.yaml", "hpa.yaml"])
def test_the_manifests_of_a_page_are_those_of_the_examples_that_are_tried(name: str) -> None:
    lines = (DOCS / "examples" / name).read_text().splitlines()
    manifest = "\n".join(line for line in lines if not line.startswith("#"))
    assert f"```yaml\n{manifest}\n```" in (DOCS / "how-to" / "scale-with-hpa-or-keda.md").read_text()
