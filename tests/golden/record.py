"""The record of plans."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("plans.json.xz")


@cache
def recorded() -> dict[str, dict[str, Any]]:
    """The recorded `outputs` of each case."""
    found: dict[str, dict[str, Any]] = json.loads(lzma.decompress(RECORD.read_bytes()))
    return found
