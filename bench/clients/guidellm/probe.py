"""GuideLLM: the counts and texts of its report, not its times."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from probing import MODEL, Probe

REQUESTS = 8
probe = Probe("guidellm")


def benchmark(streams: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [
            *(Path(sys.executable).with_name("guidellm"), "run", "--disable-console"),
            *("--backend", f"kind=openai_http,target={probe.endpoint},model={MODEL}"),
            *("--profile", f"kind=concurrent,streams={streams}"),
            *("--constraint", f"kind=max_requests,count={REQUESTS}"),
            *("--tokenizer", f"kind=huggingface_auto,model={probe.model_folder}"),
            *("--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16"),
            *("--output", f"kind=json,path={report}"),
        ]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        [found] = json.loads(report.read_text())["benchmarks"]
    answers = [[each["prompt_tokens"], each["output_tokens"]] for each in found["requests"]["successful"]]
    return {"requests": found["metrics"]["request_totals"], "answers": sorted(answers)}


@probe.case("stream, usage")
def stream() -> Any:
    return benchmark(1)


@probe.case("many at once")
def many() -> Any:
    return benchmark(REQUESTS)


probe.run()
