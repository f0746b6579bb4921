"""Render docs/reference: the resources from their schemas, the commands from their arguments, the models.

`make reference` runs it. A test compares the committed pages with its output.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uellm.api import scalars
from uellm.api.base import RULES_KEY
from uellm.api.crd import DEFINITIONS, Definition, render
from uellm.cli.main import COMMANDS
from uellm.models.classes import ENGINE
from uellm.models.online import MADE_BY_EARLIER_ENGINES, ONLINE
from uellm.models.precision import REFUSED as METHOD_REFUSALS
from uellm.models.schemes import METHODS
from uellm.models.support import APPROXIMATE, EXACT, REFUSED, supported_classes
from uellm.models.towers import TOWERS
from uellm.reconcile.field_effects import FIELD_EFFECTS

PAGES = Path(__file__).parents[1] / "docs" / "reference"
RENDERED = "<!-- Rendered by `make reference`. Change the descriptions in the code, not here. -->"
# Scalars that the schema describes only by a pattern.
SCALARS = {
    scalars.DURATION: "duration",
    scalars.RATE: "quantity",
    scalars.QUANTITY: "quantity",
    scalars.PERCENT: "percentage",
}
# Variables that change a command's defaults are unset: the reference is the same on every machine.
DEFAULTS_FROM = (
    "NODE_NAME",
    "UELLM_ENGINE_IMAGE",
    "UELLM_SIDECAR_IMAGE",
    "UELLM_LAUNCHER_IMAGE",
    "UELLM_INSPECTOR_IMAGE",
    "UELLM_NAMESPACE",
)
CHANGES = """A change of a field

- *rolls*: the pods are replaced, for their processes are started with it. Where the new content turns out to be the
  same, they are not.
- *reloads*: the sidecars take it over while they run.
- *neither*: it concerns the plan, the number of pods or how they are replaced. A changed objective or load replaces no
  pod that runs: see [Upgrade](../how-to/upgrade.md#when-the-operator-replaces-a-plan-by-itself)."""
Schema = dict[str, Any]


def pages() -> dict[str, str]:
    """Every rendered page by its file name."""
    resources = {f"{definition.model.__name__.lower()}.md": resource_page(definition) for definition in DEFINITIONS}
    kept = {name: os.environ.pop(name) for name in DEFAULTS_FROM if name in os.environ}
    try:
        return {**resources, "commands.md": commands_page(), "models.md": models_page()}
    finally:
        os.environ.update(kept)


def models_page() -> str:
    """Every class of the pinned engine's registry, and how well it is sized without its checkpoint."""
    rows = [(f"`{each.name}`", each.verdict, ", ".join(each.tasks), each.why) for each in supported_classes()]
    counts = {verdict: sum(row[1] == verdict for row in rows) for verdict in (EXACT, APPROXIMATE, REFUSED)}
    encoders = ", ".join(f"`{kind}`" for kind in sorted(TOWERS))
    made = ", ".join(f"`{name}`" for name in ONLINE if name not in MADE_BY_EARLIER_ENGINES)
    methods = ", ".join(f"`{name}`" for name in sorted(METHODS))
    refused = [(f"`{name}`", reason) for name, reason in sorted(METHOD_REFUSALS.items())]
    return "\n\n".join(
        [
            "# Models",
            RENDERED,
            f"How the {len(rows)} classes of {ENGINE}'s registry are sized from config.json alone: "
            f"{counts[EXACT]} exactly, {counts[APPROXIMATE]} approximately, {counts[REFUSED]} not. "
            "The safetensors headers of a checkpoint (`uellm model DIRECTORY`) give exact bytes for every class. "
            "What is not exact is said in the notes of `uellm model` and in the plan's assumptions.",
            "## Classes",
            "A class with several tasks is served for the first one where `spec.model.task` is not set, and for "
            "`Embed` where the repository has a `modules.json`.",
            table(("class", "from config.json", "tasks", "why"), rows),
            "## Encoders of images and sound",
            f"Exact by model_type: {encoders}. Any other is reckoned as a plain transformer of its sizes.",
            "## Quantisations",
            f"Sized by `quant_method`: {methods}.",
            f"Made by the engine from 16-bit weights, by `spec.model.quantization`: {made}.",
            "vLLM 0.32 does not start with `bitsandbytes`, GPTQ in other than 4 and 8 bits, with `sym: false` or an "
            "order of columns (`desc_act`), AWQ in other than 4 bits, ModelOpt's `NVFP4_AWQ` and `FP8_BLOCK`, and with "
            "most quantised checkpoints in float32. A service with the stock engine is refused with these. One with an "
            "engine of its own (`spec.engine.image`) and one that runs are planned.",
            table(("refused", "why"), refused),
        ]
    )


def resource_page(definition: Definition) -> str:
    """One resource: its printer columns, then a table of fields for each part of spec and status."""
    version = render(definition)["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    scope = "cluster-scoped" if definition.scope == "Cluster" else "namespaced"
    lines = [
        f"# {definition.model.__name__}",
        RENDERED,
        f"{schema['description']} Group `uellm.io`, version `v1alpha1`, {scope}, short name `{definition.short_name}`.",
        "The API server refuses a resource that breaks a type, a bound or a rule of this page, and names the field.",
        "## Columns of `kubectl get`",
        table(
            ("column", "meaning"),
            [(f"`{column['name']}`", column["description"]) for column in version["additionalPrinterColumns"]],
        ),
    ]
    for part in ("metadata", "spec", "status"):
        lines += _part(
            definition.model.__name__, part, schema["properties"][part], schema if part == "metadata" else None
        )
    return "\n\n".join(lines) + "\n"


def _part(kind: str, name: str, schema: Schema, parent: Schema | None) -> Iterator[str]:
    rules = [*_rules(name, schema), *(_rules("", parent) if parent else ())]
    fields = [] if name == "metadata" else list(_fields(schema, ""))
    if not rules and not fields:
        return
    yield f"## {name}"
    if fields:
        if name == "spec" and kind == "LLMService":
            yield CHANGES
            yield table(("field", "type", "default", "change", "meaning"), _with_effects(fields))
        else:
            yield table(("field", "type", "default", "meaning"), fields)
    if rules:
        yield "Rules:"
        yield "\n".join(f"- `{field}` {message}." for field, message in rules)


def _with_effects(fields: list[tuple[str, str, str, str]]) -> Iterator[tuple[str, str, str, str, str]]:
    """What a change does, in the row of each field that has no fields of its own."""
    for path, type_, default, meaning in fields:
        yield path, type_, default, FIELD_EFFECTS.get(path.strip("`"), ""), meaning


def _fields(schema: Schema, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        inner = field.get("items", field)
        default = "required" if name in required else _default(field)
        yield f"`{path}`", _type(field), default, field.get("description", "")
        yield from _fields(inner, f"{path}[]." if "items" in field else f"{path}.")


def _default(field: Schema) -> str:
    default = field.get("default")
    if default is None or isinstance(default, dict):
        return ""  # an object's default repeats those of its parts
    return f"`{json.dumps(default)}`" if isinstance(default, bool) else f"`{default}`"


def _type(field: Schema) -> str:
    if "enum" in field:
        return " | ".join(f"`{value}`" for value in field["enum"])
    if field.get("pattern") in SCALARS:
        return SCALARS[field["pattern"]]
    kind = field.get("type", "")
    if kind == "array":
        most = field.get("maxItems")
        return f"list{_bound(' of up to ', most)}: {_type(field['items'])}"
    if kind == "integer":
        least, most = field.get("minimum"), field.get("maximum")
        return "integer" if most is None else f"integer, {least:,} to {most:,}"
    if kind == "object" and not field.get("properties"):
        return "object, any content"
    return kind + (_bound(", up to ", field.get("maxLength"), " characters") if kind == "string" else "")


def _bound(before: str, number: int | None, after: str = "") -> str:
    return "" if number is None else f"{before}{number:,}{after}"


def _rules(path: str, schema: Schema) -> Iterator[tuple[str, str]]:
    for rule in schema.get(RULES_KEY, ()):
        yield f"{path}{rule.get('fieldPath', '')}".strip(".") or "the resource", rule["message"]
    if path:
        for name, field in schema.get("properties", {}).items():
            yield from _rules(f"{path}.{name}", field)
            yield from _rules(f"{path}.{name}[]", field.get("items", {}))


def commands_page() -> str:
    """Every command with its arguments."""
    lines = [
        "# Commands",
        RENDERED,
        "Exit status: 0 done; 1 it cannot be done, with the reason on standard error; 2 bad input, in one line that "
        "names the field or file. With `-o json` a command prints one JSON document and nothing else on standard "
        "output. `kubectl uellm ...` runs the same commands once `kubectl-uellm` is on the PATH.",
        table(
            ("command", "what it does"),
            [(f"[`uellm {name}`](#uellm-{name})", command.help) for name, command in COMMANDS.items()],
        ),
    ]
    for name, command in COMMANDS.items():
        module = importlib.import_module(command.module)
        parser = argparse.ArgumentParser(prog=f"uellm {name}", description=command.help, add_help=False)
        module.add_arguments(parser)
        lines += _command(f"uellm {name}", command.help, parser, extra=command.extra, level=2)
    return "\n\n".join(lines) + "\n"


def _command(title: str, about: str, parser: argparse.ArgumentParser, *, extra: str, level: int) -> Iterator[str]:
    yield f"{'#' * level} {title}"
    yield f"{about[:1].upper()}{about[1:]}.{f' Needs the extra `{extra}`.' if extra else ''}"
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    rows = [_argument(action) for action in parser._actions if action not in nested and action.dest != "help"]
    if rows:
        yield table(("argument", "default", "meaning"), rows)
    for action in nested:
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, subparser in action.choices.items():
            yield from _command(f"{title} {name}", helps.get(name, ""), subparser, extra="", level=level + 1)


def _argument(action: argparse.Action) -> tuple[str, str, str]:
    value = ""
    if action.nargs != 0:
        named = action.metavar if isinstance(action.metavar, str) else None
        value = named or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
        value += " ..." if action.nargs in ("+", "*") else ""
    names = [f"{option} {value}".strip() for option in action.option_strings] or [value]
    shown = ", ".join(f"`{name}`" for name in names)
    plain = isinstance(action.default, str | int | float) and not isinstance(action.default, bool)
    default = f"`{action.default}`" if plain and action.default != "" else ""
    if action.required:
        default = "required"
    return shown, default, (action.help or "") % vars(action)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *(tuple(_cell(cell) for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """The text with the characters escaped that Markdown would read as a column or a tag."""
    parts = re.split("(`[^`]*`)", text)
    shown = "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)
    return shown.replace("|", "\\|")


def main() -> int:
    """Write the pages."""
    for name, text in pages().items():
        (PAGES / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
