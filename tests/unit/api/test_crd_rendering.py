"""The CRDs: the committed files are up to date, and every field has a description and bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from uellm.api.crd import DEFINITIONS, GPUNODEPROFILES, LLMSERVICES, Definition, render, resource_schema
from uellm.cli import main as command

ROOT = Path(__file__).parents[3]
COMMITTED = ("manifests/crds", "charts/uellm/files/crds")
each_definition = pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.plural)


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of a schema with its path, except metadata."""
    yield path or ".", schema
    for name, child in schema.get("properties", {}).items():
        if (path, name) != ("", "metadata"):
            yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


@pytest.mark.parametrize("directory", COMMITTED)
def test_the_committed_crds_are_the_rendered_ones(directory: str, tmp_path: Path) -> None:
    assert command.main(["crds", "--output-dir", str(tmp_path)]) == 0
    rendered = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / directory).iterdir()}
    assert committed == rendered, f"run: uellm crds {' '.join(f'--output-dir {d}' for d in COMMITTED)}"


@each_definition
def test_every_field_is_described(definition: Definition) -> None:
    # The list describes its elements; a scalar element has no description of its own.
    bare = [
        p for p, node in nodes(resource_schema(definition)) if "description" not in node and p[-2:] not in ("[]", "{}")
    ]
    assert bare == []


@each_definition
def test_every_text_number_and_list_is_bounded(definition: Definition) -> None:
    def unbounded(node: dict[str, Any]) -> bool:
        kind = "text" if node.get("x-kubernetes-int-or-string") else node.get("type")
        if kind in ("string", "text"):
            return not {"maxLength", "enum"} & set(node)
        if kind == "integer":
            return not ("minimum" in node and ("maximum" in node or node["format"] == "int64"))
        if kind == "array":
            return "maxItems" not in node or "x-kubernetes-list-type" not in node
        if kind == "object" and ("properties" not in node):
            return "maxProperties" not in node
        return False

    loose = [path for path, node in nodes(resource_schema(definition)) if unbounded(node)]
    assert loose == [".apiVersion", ".kind"]


@each_definition
def test_the_schema_is_structural(definition: Definition) -> None:
    text = json.dumps(resource_schema(definition))
    for word in ("$ref", "$defs", "anyOf", "allOf", "oneOf", '"null"', "null", "exclusiveM", '"title"', '"const"'):
        assert word not in text


@each_definition
def test_a_status_has_no_defaults(definition: Definition) -> None:
    status = resource_schema(definition)["properties"]["status"]
    assert [path for path, node in nodes(status) if "default" in node] == []


def test_no_empty_list_or_text_is_a_default() -> None:
    found = [n["default"] for _, n in nodes(resource_schema(LLMSERVICES)) if "default" in n]
    assert [] not in found
    assert "" not in found
    assert {} not in found


def test_the_columns_are_those_of_the_design() -> None:
    (version,) = render(LLMSERVICES)["spec"]["versions"]
    columns = version["additionalPrinterColumns"]
    usual = [column["name"] for column in columns if not column.get("priority")]
    assert usual == ["MODEL", "GPUS", "LAYERS", "NODES", "SLO", "READY", "STATUS", "AGE"]
    assert [column["name"] for column in columns if column.get("priority")] == ["MESSAGE"]


def test_the_short_names_are_llm_gnp_and_gnc() -> None:
    short = [render(d)["spec"]["names"]["shortNames"] for d in DEFINITIONS]
    assert short == [["llm"], ["gnp"], ["gnc"]]


def test_replicas_scale() -> None:
    (version,) = render(LLMSERVICES)["spec"]["versions"]
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.replicas"
    assert "scale" not in render(GPUNODEPROFILES)["spec"]["versions"][0]["subresources"]


def test_the_command_prints_documents_in_yaml_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["crds"]) == 0
    from_yaml = list(yaml.safe_load_all(capsys.readouterr().out))
    assert command.main(["crds", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == from_yaml
    assert [d["metadata"]["name"] for d in from_yaml] == [
        "llmservices.uellm.io",
        "gpunodeprofiles.uellm.io",
        "gpunodeclasses.uellm.io",
    ]
