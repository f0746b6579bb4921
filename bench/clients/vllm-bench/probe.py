"""`vllm bench serve`: the counts of its report, not its times."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from probing import MODEL, NO_MODEL, Probe

REQUESTS = 16
COUNTS = ("completed", "failed", "total_input_tokens", "total_output_tokens", "errors")
probe = Probe("vllm")


def bench(backend: str, path: str, *, model: str = MODEL, concurrency: int = 1) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(Path(sys.executable).with_name("vllm"), "bench", "serve", "--backend", backend, "--endpoint", path),
            *("--base-url", probe.endpoint, "--model", probe.model_folder, "--served-model-name", model),
            *("--dataset-name", "random", "--random-input-len", 32, "--random-output-len", 16, "--seed", 1),
            *("--num-prompts", REQUESTS, "--max-concurrency", concurrency, "--ignore-eos", "--temperature", 0),
            *("--save-result", "--save-detailed", "--result-dir", folder, "--result-filename", "report.json"),
            *("--ready-check-timeout-sec", 0, "--disable-tqdm"),
        ]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        report = json.loads(Path(folder, "report.json").read_text())
        if not report["completed"]:
            raise RuntimeError(report["errors"][0])
        return {name: report.get(name) for name in COUNTS} | {"texts": report["generated_texts"]}


@probe.case("stream, usage")
def stream() -> Any:
    return bench("openai", "/v1/completions")


@probe.case("unknown model")
def unknown_model() -> Any:
    return bench("openai", "/v1/completions", model=NO_MODEL)


@probe.case("many at once")
def many() -> Any:
    return bench("openai-chat", "/v1/chat/completions", concurrency=REQUESTS)


probe.run()
