"""Downloads LoRA adapters in the engine's container, at the commit that was looked up.

vLLM itself downloads an adapter by its name alone, so whatever a branch is at that moment. It is given a path instead,
which names the commit, so that it cannot take one adapter's KV cache for another's. The download runs in a process of
its own, with the huggingface_hub of the engine's image, its token, proxies and certificates.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uellm.pod_interface import ADAPTER_TOKEN_FILE

BODY_BYTES = 4096
DOWNLOAD_TIMEOUT_S = 1800.0
LONGEST_REASON = 500
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_COMMIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_DOWNLOAD = """
import json, sys
try:
    from huggingface_hub import snapshot_download
    files = ["adapter_config.json", "adapter_model.safetensors"]
    print(json.dumps({"path": snapshot_download(sys.argv[1], revision=sys.argv[2], allow_patterns=files)}))
except Exception as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


class AdapterDownloads:
    """Answers the sidecar. `run_directory`: shared with the sidecar alone."""

    def __init__(self, run_directory: Path) -> None:
        self._token = secrets.token_hex(16)
        self._file = run_directory / ADAPTER_TOKEN_FILE

    def publish(self) -> None:
        """Write the secret by which the sidecar is known. Raises OSError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_name(f".{self._file.name}")
        part.write_text(self._token, encoding="ascii")
        os.replace(part, self._file)

    def answer(self, token: str, body: bytes) -> tuple[int, dict[str, str]]:
        """Status and document. Blocks until the adapter is there."""
        if not hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token.encode()):
            return 403, {"error": f"only the pod's sidecar may ask, with the content of {ADAPTER_TOKEN_FILE}"}
        wanted = _parsed(body)
        repository, commit = wanted.get("repository"), wanted.get("commit")
        if not isinstance(repository, str) or not _REPOSITORY.fullmatch(repository):
            return 400, {"error": "repository is no owner/name"}
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            return 400, {"error": "commit is none"}
        return download(repository, commit)


def download(repository: str, commit: str) -> tuple[int, dict[str, str]]:
    """Download with this interpreter's huggingface_hub."""
    command = [sys.executable, "-c", _DOWNLOAD, repository, commit]
    try:
        done = subprocess.run(command, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 502, {"error": f"{repository} at {commit} was not downloaded: {error}"[:LONGEST_REASON]}
    # Not by the exit status: this process is the first of its container, and collects all that die by itself.
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    found = _parsed(lines[-1].encode()) if lines else {}
    path = found.get("path")
    if isinstance(path, str):
        return 200, {"path": path}
    why = " ".join(str(found.get("error") or done.stderr.decode(errors="replace")[-LONGEST_REASON:]).split())
    return 502, {"error": f"{repository} at {commit} was not downloaded: {why}"[:LONGEST_REASON]}


def _parsed(text: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
