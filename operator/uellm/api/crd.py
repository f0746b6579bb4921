"""The CustomResourceDefinitions, rendered from the types: structural schemas without `$ref`, `anyOf` or `null`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from uellm.api.base import RULES_KEY, Model
from uellm.api.gpunodeclass import GPUNodeClass
from uellm.api.gpunodeprofile import GPUNodeProfile
from uellm.api.llmservice import MAX_NAME_LENGTH, LLMService
from uellm.api.names import GROUP, VERSION

Schema = dict[str, Any]
# The order of a schema's keys: the most important for a reader first.
_KEY_ORDER = (
    *("description", "type", "format", "enum", "default"),
    *("minimum", "maximum", "minLength", "maxLength", "pattern"),
)
_DROPPED = {"title", "additionalProperties", "const", "$defs"}


class Column(NamedTuple):
    """A column of `kubectl get`."""

    name: str
    path: str
    description: str
    type: str = "string"
    wide: bool = False
    """Shown by `-o wide` alone."""


class Definition(NamedTuple):
    """The contents of a CRD besides the schema."""

    model: type[Model]
    plural: str
    short_name: str
    scope: str
    columns: tuple[Column, ...]
    scalable: bool = False
    name_schema: Schema | None = None

    @property
    def file_name(self) -> str:
        """Name of the file that holds this CRD."""
        return f"{GROUP}_{self.plural}.yaml"


_READY_MESSAGE = ".status.conditions[?(@.type=='Ready')].message"
LLMSERVICES = Definition(
    model=LLMService,
    plural="llmservices",
    short_name="llm",
    scope="Namespaced",
    scalable=True,
    # With these, the API server can estimate the cost of a rule on the name and name its field.
    name_schema={"type": "string", "maxLength": MAX_NAME_LENGTH},
    columns=(
        Column("MODEL", ".spec.model.uri", "The model's source"),
        Column("GPUS", ".status.summary.gpus", "GPUs of a replica and their use"),
        Column("LAYERS", ".status.summary.layers", "Layers of each stage"),
        Column("NODES", ".status.summary.nodes", "Nodes on which replicas run"),
        Column("SLO", ".status.summary.slo", "Whether the targets are predicted to be met"),
        Column("READY", ".status.summary.ready", "Ready and desired replicas"),
        Column("STATUS", ".status.conditions[?(@.type=='Ready')].reason", "Why it is ready or not"),
        Column("AGE", ".metadata.creationTimestamp", "Time since creation", "date"),
        Column("MESSAGE", _READY_MESSAGE, "The same in a sentence, with `-o wide`", wide=True),
    ),
)
GPUNODEPROFILES = Definition(
    model=GPUNodeProfile,
    plural="gpunodeprofiles",
    short_name="gnp",
    scope="Cluster",
    columns=(
        Column("READY", ".status.conditions[?(@.type=='Ready')].status", "Whether plans may use it"),
        Column("SOURCE", ".status.source", "NVML (read from the driver) or Simulated"),
        Column("GPUS", ".status.summary.gpus", "The node's GPUs"),
        Column("FREE", ".status.summary.free", "Healthy GPUs that no pod has"),
        Column("PRODUCTS", ".status.summary.products", "What they are"),
        Column("DRIVER", ".status.driverVersion", "Version of the GPU driver"),
        Column("OBSERVED", ".status.observedAt", "When the profiler last observed the node", "date"),
        Column("AGE", ".metadata.creationTimestamp", "Time since creation", "date"),
    ),
)
GPUNODECLASSES = Definition(
    model=GPUNodeClass,
    plural="gpunodeclasses",
    short_name="gnc",
    scope="Cluster",
    columns=(
        Column("GPUS", ".status.summary.gpus", "GPUs of such a node"),
        Column("PRODUCTS", ".status.summary.products", "What they are"),
        Column("NODES", ".status.nodes", "Nodes of this class in the cluster", "integer"),
        Column("READY", ".status.conditions[?(@.type=='Ready')].status", "Whether plans may use it"),
        Column("STATUS", ".status.conditions[?(@.type=='Ready')].reason", "Why they may or may not"),
        Column("AGE", ".metadata.creationTimestamp", "Time since creation", "date"),
    ),
)
DEFINITIONS = (LLMSERVICES, GPUNODEPROFILES, GPUNODECLASSES)


def render(definition: Definition) -> dict[str, Any]:
    """The CustomResourceDefinition as a document."""
    kind = definition.model.__name__
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": resource_schema(definition)},
        "subresources": _subresources(definition),
        "additionalPrinterColumns": [
            {"name": c.name, "type": c.type, "description": c.description, "jsonPath": c.path, **_priority(c)}
            for c in definition.columns
        ],
    }
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": definition.plural,
        "singular": kind.lower(),
        "shortNames": [definition.short_name],
        "categories": ["uellm"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{definition.plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": definition.scope, "names": names, "versions": [version]},
    }


def _priority(column: Column) -> dict[str, int]:
    return {"priority": 1} if column.wide else {}


def _subresources(definition: Definition) -> dict[str, Any]:
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    return {"status": {}, **({"scale": scale} if definition.scalable else {})}


_ABSENT = object()
"""Placeholder for the default of a field that may be absent, until the defaults are settled."""


def resource_schema(definition: Definition) -> Schema:
    """The whole resource's structural schema."""
    document = definition.model.model_json_schema(by_alias=True, mode="validation")
    schema = _structural(document, document.get("$defs", {}))
    properties = schema["properties"]
    for name in ("apiVersion", "kind"):
        properties[name] = {"description": properties[name]["description"], "type": "string"}
    properties["metadata"] = {"type": "object"}
    if definition.name_schema:
        properties["metadata"]["properties"] = {"name": definition.name_schema}
    _keep_useful_defaults(properties["spec"])
    _without_defaults(properties["status"])
    schema["required"] = [name for name in schema["required"] if name != "metadata"]
    return schema if schema["required"] else {key: value for key, value in schema.items() if key != "required"}


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """The schema with every reference resolved and every optional field as its plain type."""
    merged = _resolved(node, definitions)
    schema = {key: value for key, value in merged.items() if key not in _DROPPED}
    if "const" in merged:
        schema["enum"] = [merged["const"]]
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if "properties" in schema:
        schema["properties"] = {name: _structural(p, definitions) for name, p in schema["properties"].items()}
    if "items" in schema:
        schema["items"] = _structural(schema["items"], definitions)
    if isinstance(merged.get("additionalProperties"), Mapping):
        schema["additionalProperties"] = _structural(merged["additionalProperties"], definitions)
    if schema.get("type") == "integer":
        schema["format"] = "int32" if schema.get("maximum", 2**63) < 2**31 else "int64"
    if schema.get("default", 0) is None:
        schema["default"] = _ABSENT
    return _ordered(schema)


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """Follow `$ref` and `anyOf: [X, null]`. Keys beside them, such as a description, override the keys inside."""
    beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
    if "$ref" in node:
        return _merged(_resolved(definitions[node["$ref"].rsplit("/", 1)[1]], definitions), beside)
    if "anyOf" in node:
        (only,) = (option for option in node["anyOf"] if option.get("type") != "null")
        return _merged(_resolved(only, definitions), beside)
    return beside


def _merged(held: Schema, beside: Schema) -> Schema:
    rules = [*held.get(RULES_KEY, ()), *beside.get(RULES_KEY, ())]
    return {**held, **beside, **({RULES_KEY: rules} if rules else {})}


def _ordered(schema: Schema) -> Schema:
    first = {key: schema[key] for key in _KEY_ORDER if key in schema}
    return {**first, **{key: value for key, value in schema.items() if key not in first}}


def _keep_useful_defaults(schema: Schema) -> None:
    """Drop empty defaults (empty lists and strings), and give each object the defaults of its parts as its own default.

    The object's default is written in full, not as `{}`: the API server checks it against the rules before it fills in
    the defaults of the parts. An object that may be absent has none: that it is absent means something.
    """
    for child in _children(schema):
        _keep_useful_defaults(child)
    if schema.get("default") is _ABSENT:
        del schema["default"]
        return
    if schema.get("default") in ([], "", {}):
        del schema["default"]
    parts = {name: p["default"] for name, p in schema.get("properties", {}).items() if "default" in p}
    if parts and not schema.get("required"):
        schema["default"] = parts


def _without_defaults(schema: Schema) -> None:
    """The schema without defaults: a status contains only what its writer wrote."""
    schema.pop("default", None)
    for child in _children(schema):
        _without_defaults(child)


def _children(schema: Schema) -> Iterable[Schema]:
    yield from schema.get("properties", {}).values()
    if "items" in schema:
        yield schema["items"]
    if isinstance(schema.get("additionalProperties"), dict):
        yield schema["additionalProperties"]
