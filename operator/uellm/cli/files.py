"""Reads the files that commands take. Every error names the file."""

from __future__ import annotations

import json
from typing import Any

import yaml

from uellm.documents import read_text
from uellm.errors import BadInput


def read_yaml(name: str) -> Any:
    """A YAML document. Raises BadInput naming the file."""
    try:
        return yaml.safe_load(read_text(name))
    except yaml.YAMLError as error:
        raise BadInput(name, f"is not YAML: {' '.join(str(error).split())}") from error


def read_json(name: str) -> Any:
    """A JSON document. Raises BadInput naming the file and the line."""
    try:
        return json.loads(read_text(name))
    except (ValueError, RecursionError) as error:
        where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadInput(name, f"is not JSON{where}: {getattr(error, 'msg', error)}") from error
