"""Runs the engine's own reading of a config (uellm.engine_facts) in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uellm.errors import CannotBeDone

PATIENCE_S = 600.0


def engine_facts(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors and caches that vLLM's class has for a config. Raises CannotBeDone where there is no vLLM here, or
    where it refuses the config.
    """
    if find_spec("vllm") is None:
        raise CannotBeDone("NoEngine", "--exact needs vLLM on this machine: install the extra engine-cpu")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", "uellm.engine_facts", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise CannotBeDone("EngineSilent", f"--exact: vLLM gave no answer in {PATIENCE_S:.0f} s") from error
    facts = _last_document(done.stdout)
    if facts is None:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise CannotBeDone("EngineFailed", f"--exact: vLLM ended without an answer: {lines[-1]}")
    if "error" in facts:
        raise CannotBeDone("EngineRefuses", f"--exact: vLLM cannot build the model: {facts['error']}")
    return facts


def _last_document(output: str) -> Mapping[str, Any] | None:
    """The last line that is a JSON object: the engine's libraries may print before it."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None
