"""`uellm crds`: prints the CustomResourceDefinitions, or writes them to directories."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from uellm.api.crd import DEFINITIONS, render
from uellm.errors import BadInput

_HEADER = "# Rendered by `uellm crds` from operator/uellm/api: change it there.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "-o", "--output", choices=("yaml", "json"), default="yaml", help="output format (default: yaml)"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="write one YAML file per resource into DIR instead (may be given several times)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the CRDs, or write them into the given directories."""
    documents = [render(definition) for definition in DEFINITIONS]
    if args.output_dir:
        for directory in args.output_dir:
            write(directory)
    elif args.output == "json":
        json.dump({"apiVersion": "v1", "kind": "List", "items": documents}, sys.stdout, indent=2)
        print()
    else:
        print("---\n".join(_yaml(document) for document in documents), end="")
    return 0


def write(directory: Path) -> list[Path]:
    """Write each CRD to its own file in the directory, and return their paths. Raises BadInput."""
    paths = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for definition in DEFINITIONS:
            path = directory / definition.file_name
            path.write_text(_HEADER + _yaml(render(definition)), encoding="utf-8")
            paths.append(path)
    except OSError as error:
        raise BadInput(f"--output-dir {directory}", f"cannot be written: {error.strerror}") from error
    return paths


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # YAML anchors make a CRD harder to read

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _yaml(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120)
