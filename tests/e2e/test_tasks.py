"""An embedder and a reranker on the real engine with `uellm run`: what they are is found out from their files."""

from __future__ import annotations

import json
import math
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from helpers import tiny_poolers
from helpers.local_run import LocalRun, local_run, post

CLASSES = [{"name": "batch", "e2e": "600s"}, {"name": "search", "e2e": "60s"}]
TEXT = "How does the import statement work? "


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRun]:
    scratch = tmp_path_factory.mktemp("embedder")
    tiny_poolers.embedder(scratch / "model")
    spec = {
        "model": {"uri": f"file://{scratch}/model", "maxModelLen": 1024},
        "slo": {"classes": CLASSES},
        # One at a time, so that the order of the answers is the order of the queue.
        "engine": {"args": ["--max-num-seqs", "1"]},
    }
    with local_run(scratch, spec) as run:
        run.until("ready after")
        yield run


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRun]:
    scratch = tmp_path_factory.mktemp("reranker")
    tiny_poolers.reranker(scratch / "model")
    with local_run(scratch, {"model": {"uri": f"file://{scratch}/model"}, "slo": {"classes": CLASSES}}) as run:
        run.until("ready after")
        yield run


def without_id(answer: bytes) -> Any:
    document = json.loads(answer)
    for name in ("id", "created"):
        document.pop(name, None)
    return document


def same(run: LocalRun, path: str, body: dict[str, Any], status: int = 200) -> Any:
    """The engine's and the sidecar's answer, which must be alike but for ids and times."""
    headers = {"X-Request-Id": "same"}
    (direct_status, direct), (through_status, through) = (
        post(base + path, body, headers) for base in (run.engine, run.url)
    )
    assert (direct_status, through_status) == (status, status), through
    assert alike(without_id(through), without_id(direct)), (through, direct)
    return without_id(through)


def alike(one: Any, other: Any) -> bool:
    """Whether two documents are equal. Figures may differ in their last digits: inputs that the engine happens to
    compute in one batch are summed in another order.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
    return bool(one == other)


def figures(run: LocalRun) -> dict[str, float]:
    with urllib.request.urlopen(f"{run.metrics}/metrics", timeout=10) as answer:
        lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_a_decoder_with_modules_json_is_started_as_an_embedder(embedder: LocalRun):
    command = embedder.command
    assert command[command.index("--runner") + 1] == "pooling"
    assert command[command.index("--convert") + 1] == "embed"


def test_vectors_are_those_of_the_engine(embedder: LocalRun):
    one = same(embedder, "/v1/embeddings", {"model": "tiny", "input": TEXT})
    assert len(one["data"][0]["embedding"]) == 256
    many = same(embedder, "/v1/embeddings", {"model": "tiny", "input": [TEXT, "another", TEXT]})
    assert [entry["index"] for entry in many["data"]] == [0, 1, 2]
    assert many["data"][0]["embedding"] == pytest.approx(one["data"][0]["embedding"], abs=1e-5)
    assert many["data"][1]["embedding"] != many["data"][0]["embedding"]
    same(embedder, "/v1/embeddings", {"model": "tiny", "input": [[5, 6, 7], [8, 9]], "encoding_format": "base64"})
    same(embedder, "/pooling", {"model": "tiny", "input": TEXT})


def test_errors_are_those_of_the_engine(embedder: LocalRun):
    same(embedder, "/v1/embeddings", {"model": "tiny", "input": [TEXT * 400] * 200}, 400)
    for empty in ("", []):
        direct, through = (
            post(f"{base}/v1/embeddings", {"model": "tiny", "input": empty})[0]
            for base in (embedder.engine, embedder.url)
        )
        assert through == direct
    assert post(f"{embedder.url}/v1/chat/completions", {"model": "tiny", "messages": []})[0] == 404


def test_an_urgent_request_passes_those_that_wait(embedder: LocalRun):
    ended: list[str] = []
    lock = threading.Lock()

    def ask(name: str, text: str) -> None:
        status, _ = post(f"{embedder.url}/v1/embeddings", {"model": "tiny", "input": text}, {"x-slo-class": name})
        with lock:
            ended.append(name if status == 200 else f"{name} {status}")

    waiting = [threading.Thread(target=ask, args=("batch", [TEXT * 60] * 6)) for _ in range(12)]
    for thread in waiting:
        thread.start()
    deadline_s = time.monotonic() + 30
    while figures(embedder)['uellm_requests_queued{class="batch"}'] < 8:
        assert time.monotonic() < deadline_s, ended
    urgent = threading.Thread(target=ask, args=("search", TEXT))
    urgent.start()
    for thread in (*waiting, urgent):
        thread.join()
    assert sorted(ended) == ["batch"] * 12 + ["search"]
    assert ended.index("search") < 8, ended


def test_scores_and_ranks_are_those_of_the_engine(reranker: LocalRun):
    documents = [TEXT, "a loop", "the import system"]
    scored = same(reranker, "/score", {"model": "tiny", "text_1": "imports", "text_2": documents})
    assert len({entry["score"] for entry in scored["data"]}) == 3
    ranked = same(reranker, "/v1/rerank", {"model": "tiny", "query": "imports", "documents": documents})
    best = max(scored["data"], key=lambda entry: entry["score"])
    assert ranked["results"][0]["index"] == best["index"]
    same(reranker, "/classify", {"model": "tiny", "input": TEXT})


def test_a_model_without_a_kv_cache_serves_many_at_once_and_stays_healthy(reranker: LocalRun):
    body = {"model": "tiny", "query": "imports", "documents": [TEXT] * 16}
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(post(f"{reranker.url}/rerank", body)[0])) for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 24
    found = figures(reranker)
    assert found["uellm_engine_ready"] == 1.0
    assert not [name for name in found if name.startswith("uellm_faults_total") and found[name]]
