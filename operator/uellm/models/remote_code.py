"""Whether the engine needs code of the model's repository to build it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.models.classes import is_served


def needs_remote_code(config: Mapping[str, Any]) -> bool:
    """True where config.json names code of its own and the pinned engine serves none of its classes itself."""
    code, named = config.get("auto_map"), config.get("architectures")
    if not isinstance(code, Mapping) or "AutoConfig" not in code:
        return False
    return not any(is_served(str(name)) for name in (named if isinstance(named, list | tuple) else ()))
