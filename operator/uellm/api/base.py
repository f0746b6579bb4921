"""The base of every API type: camelCase names, and validation rules for the API server and for Python.

Each rule is written twice, side by side: in CEL for the API server, and as a Python predicate for commands that read a
file without a cluster. `tests/cluster` gives the same documents to both and expects the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True)
class ValidationRule:
    """A rule on a value: an annotation of a field, or one of a model's `rules`."""

    cel: str
    """The rule as a CEL expression."""
    holds: Callable[[Any], bool]
    """The same rule in Python."""
    message: str
    """What the value must be. In an error it follows the field's path."""
    field: str = ""
    """Path below the value that an error names, such as `.min`; empty for the value itself."""
    required: bool = False
    """The rule fails because something is missing, not because a value is wrong."""

    def check(self, value: Any) -> Any:
        """Return the value. Raises PydanticCustomError with the rule's message."""
        if not self.holds(value):
            raise PydanticCustomError("rule", "{message}", {"message": self.message, "field": self.field})
        return value

    def to_dict(self) -> dict[str, str]:
        """The entry of `x-kubernetes-validations`."""
        entry = {"rule": self.cel, "message": self.message}
        if self.field:
            entry["fieldPath"] = self.field
        entry["reason"] = "FieldValueRequired" if self.required else "FieldValueInvalid"
        return entry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        rendered = handler(schema)
        return {**rendered, RULES_KEY: [*rendered.get(RULES_KEY, ()), self.to_dict()]}


RULES_KEY = "x-kubernetes-validations"


def camel(name: str) -> str:
    """`max_model_len` -> `maxModelLen`. pydantic's alias generator would turn `e2e` into `e2E`."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


class Model(BaseModel):
    """A part of a resource: immutable, without unknown fields; the docstring under a field describes it."""

    model_config = ConfigDict(
        alias_generator=camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        defer_build=True,
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[ValidationRule, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document: camelCase names, unset fields left out."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")

    @model_validator(mode="after")
    def _hold_rules(self) -> Model:
        for rule in self.rules:
            rule.check(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        rendered = handler.resolve_ref_schema(handler(schema))
        if cls.rules:
            rendered[RULES_KEY] = [rule.to_dict() for rule in cls.rules]
        return rendered


class StatusModel(Model):
    """A part of a status: unknown fields are ignored, because a newer operator may have written them."""

    model_config = ConfigDict(extra="ignore")


@dataclass(frozen=True)
class MapBy:
    """Annotation of a list whose entries have unique keys: server-side apply treats it as a map."""

    key: str

    def check(self, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the entries. Raises PydanticCustomError where two have the same key."""
        keys = [getattr(entry, self.key) for entry in entries]
        twice = next((position for position, key in enumerate(keys) if key in keys[:position]), None)
        if twice is not None:
            raise PydanticCustomError(
                "rule", "{message}", {"message": f"has the {self.key} of another entry", "field": f"[{twice}]"}
            )
        return entries

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}


ATOMIC: Mapping[str, Any] = {"x-kubernetes-list-type": "atomic"}
PRESERVED: Mapping[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}
