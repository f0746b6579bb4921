"""Shapes of the models, from their public config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIGS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "models.json").read_text())
