"""Parses documents as users write them and as the API server sends them. Errors name the field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from uellm.api.base import Model
from uellm.api.gpunodeclass import GPUNodeClass
from uellm.api.gpunodeprofile import GPUNodeProfile
from uellm.api.llmservice import LLMService
from uellm.documents import read_text
from uellm.errors import BadInput

PASSED_ON = frozenset({"metadata", "config", "template"})
"""Fields whose content this API does not describe."""

# libyaml, if the package was built with it, because the profiles of a hundred nodes are several megabytes.
LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TOO_DEEP = "it is nested too deeply, or contains itself"

T = TypeVar("T", bound=Model)


def parse_service(document: Mapping[str, Any]) -> LLMService:
    """Parse an LLMService. Raises BadInput with the field's path."""
    return _parse(LLMService, document)


def parse_profile(document: Mapping[str, Any]) -> GPUNodeProfile:
    """Parse a GPUNodeProfile. Raises BadInput with the field's path."""
    return _parse(GPUNodeProfile, document)


def parse_node_class(document: Mapping[str, Any]) -> GPUNodeClass:
    """Parse a GPUNodeClass. Raises BadInput with the field's path."""
    return _parse(GPUNodeClass, document)


def parse(model: type[T], document: Mapping[str, Any], *, at: str = "") -> T:
    """Parse a document into any API type. Raises BadInput with the field's path, after the prefix `at`."""
    try:
        # Strict JSON mode accepts exactly what the API server accepts: no "4" for a number, no snake_case names.
        return model.model_validate_json(
            json.dumps(_without_nulls(document), default=_timestamp), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        field, message = _refusal(error.errors(include_url=False)[0])
        raise BadInput(f"{at}.{field}".strip("."), message) from error
    except TypeError as error:
        raise BadInput(at, f"cannot be written as JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(at, f"cannot be written as JSON: {_TOO_DEEP}") from error


def read_documents(path: str | Path) -> list[dict[str, Any]]:
    """All documents of a YAML or JSON file (`-`: standard input), Lists replaced by their items. Raises BadInput."""
    text = read_text(str(path))
    try:
        documents = list(yaml.load_all(text, Loader=LOADER))
    except yaml.YAMLError as error:
        raise BadInput(str(path), "is not YAML: " + " ".join(str(error).split())) from error
    except RecursionError as error:
        raise BadInput(str(path), _TOO_DEEP) from error
    try:
        return [item for document in documents if document is not None for item in _items(document, str(path))]
    except RecursionError as error:
        raise BadInput(str(path), _TOO_DEEP) from error


def read_service(path: str | Path) -> LLMService:
    """The one LLMService of a file. Raises BadInput."""
    services = [d for d in read_documents(path) if d.get("kind") == "LLMService"]
    if len(services) != 1:
        raise BadInput(str(path), f"must hold one LLMService; it holds {len(services)}")
    return parse_service(services[0])


def _items(document: Any, source: str) -> Iterator[dict[str, Any]]:
    if not isinstance(document, dict):
        raise BadInput(source, f"must hold Kubernetes objects, not {type(document).__name__}")
    if str(document.get("kind", "")).endswith("List") and isinstance(document.get("items"), list):
        for item in document["items"]:
            yield from _items(item, source)
    else:
        yield document


def _parse(model: type[T], document: Mapping[str, Any]) -> T:
    kind = model.__name__
    if document.get("kind") != kind:
        raise BadInput("kind", f"must be {kind}, not {document.get('kind')!r}")
    return parse(model, document)


def _without_nulls(value: Any) -> Any:
    """Drop fields that are null, as the API server does, except in parts that are passed on unchanged."""
    if isinstance(value, Mapping):
        return {
            key: part if key in PASSED_ON else _without_nulls(part) for key, part in value.items() if part is not None
        }
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _timestamp(value: Any) -> str:
    # YAML parses an unquoted time stamp into a datetime.
    if isinstance(value, datetime | date):
        return value.isoformat()
    raise TypeError(f"{value!r} has no JSON form")


def _refusal(error: ErrorDetails) -> tuple[str, str]:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] == "rule":
        return (path + error["ctx"]["field"]).lstrip("."), str(error["msg"])
    if error["type"] == "extra_forbidden":
        return path, "is not a field of this resource"
    if error["type"] == "missing":
        return path, "is required"
    return path, f"{error['msg']}, not {_short(error['input'])}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
