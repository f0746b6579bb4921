"""Real client libraries in front of real vLLM, directly and through the sidecar: does each get the same?

    python bench/client_matrix.py [--only CLIENT ...] [--json FILE]

One vLLM engine on the CPU (a small model with random weights) and one sidecar run the whole time. Each client has an
environment of its own with locked versions (bench/clients/CLIENT), made under build/clients, and a probe that uses it
as a person would. Compared is what the client hands back: text, usage, finish reason, calls, the class and message of
an error; without ids, times and ports. A case that differs is asked again at the engine alone: where that differs too,
the case is `unsteady`.

The environments need PyPI, the npm registry and 8 GB of disk. A client that cannot be installed is named, and the
others go on. Exits with 1 if any case is not the same or any client could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clients.compare import DIFFERS, compared
from clients.environments import HERE, SHARED, Environment, Unavailable, last_line, prepared
from clients.report import Row, table
from sidecar_load.vllm import Served, engine_and_sidecar

CLIENTS = sorted(probe.parent.name for probe in HERE.glob("*/probe.*"))
PROBE_TIMEOUT_S = 600.0
CHUNK, SEQUENCES = 512, 8
CONFIG = {"model": "tiny", "classes": [], "engine": {"maxNumSeqs": SEQUENCES, "maxNumBatchedTokens": CHUNK}}
# Random weights would fill the white space that JSON allows without end.
STRUCTURED = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')
# And it would never end the arguments of a call that no schema binds.
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--tool-strict-level", "parameter")


class ProbeFailedError(Exception):
    """A probe ended without an answer."""


def probed(environment: Environment, endpoint: str, at: Served) -> dict[str, Any]:
    """What the client handed back from an endpoint. Raises ProbeFailedError."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        command = [*environment.command, endpoint, at.engine, str(at.model), str(out)]
        variables = os.environ | {"PYTHONPATH": str(SHARED), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        try:
            done = subprocess.run(
                command, cwd=environment.folder, env=variables, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise ProbeFailedError(f"the probe was not done within {PROBE_TIMEOUT_S:.0f} s") from None
        if done.returncode != 0:
            raise ProbeFailedError(f"the probe failed: {last_line(done.stderr)}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def row(client: str, environment: Environment | Unavailable, at: Served) -> Row:
    """One client's line of the matrix."""
    if isinstance(environment, Unavailable):
        return Row(client, problem=f"not available: {environment.reason}")
    try:
        direct = probed(environment, at.engine, at)
        through = probed(environment, at.sidecar, at)
        cases = compared(direct["cases"], through["cases"], {})
        if any(case["verdict"] == DIFFERS for case in cases.values()):
            cases = compared(direct["cases"], through["cases"], probed(environment, at.engine, at)["cases"])
    except ProbeFailedError as error:
        return Row(client, problem=str(error))
    for feature, case in cases.items():
        case["direct"], case["sidecar"] = direct["cases"][feature], through["cases"].get(feature)
    return Row(client, direct["version"], cases)


def main() -> int:
    """Install, probe, print, write. Returns 1 if a case differs or a client could not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=CLIENTS, metavar="CLIENT")
    parser.add_argument("--install-only", action="store_true", help="make the environments and stop")
    parser.add_argument("--json", type=Path, help="write the matrix, with what each client handed back, to this file")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that engine and sidecar are ended, too
    environments = {}
    for client in args.only:
        print(f"installing {client}", file=sys.stderr, flush=True)
        environments[client] = prepared(client)
    if args.install_only:
        return 0
    rows = []
    flags = (*STRUCTURED, *TOOLS)
    with engine_and_sidecar(CONFIG, chunk=CHUNK, sequences=SEQUENCES, flags=flags) as at:
        for client, environment in environments.items():
            print(f"asking as {client}", file=sys.stderr, flush=True)
            rows.append(row(client, environment, at))
    print(table(rows))
    if args.json:
        document = {"benchmark": "client_matrix", "rows": [asdict(each) for each in rows]}
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(each.passed for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
