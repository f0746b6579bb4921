"""Engines older than the plan's flags are refused by name and version."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from uellm.errors import PlanError
from uellm.launcher.engine_version import ADDED_FLAGS, check_engine, check_streamer, unknown_flags

ARGV = (
    "python3",
    "-m",
    "vllm",
    "serve",
    "m",
    "--max-model-len",
    "8",
    "--kv-cache-memory-bytes",
    "9",
    "--own",
    "x",
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An old vLLM's sources, as far as they define flags."""
    engine = tmp_path / "vllm" / "engine"
    engine.mkdir(parents=True)
    (engine / "arg_utils.py").write_text(
        "class EngineArgs:\n    max_model_len: int = 0\n    kv_cache_memory: int = 0\n"
    )
    return tmp_path / "vllm"


def test_an_old_engine_is_refused_by_the_flag_and_its_version(package):
    with pytest.raises(PlanError, match="kv-cache-memory-bytes") as refused:
        check_engine(ARGV, package=package, version="0.9.1")
    assert refused.value.reason == "EngineTooOld"
    assert str(refused.value) == (
        "vLLM 0.9.1 of the engine's image does not know --kv-cache-memory-bytes, which the plan needs: set "
        "spec.engine.image to a newer one, such as vllm/vllm-openai:v0.32.0"
    )


def test_a_users_own_flag_is_left_to_vllm(package):
    check_engine(("serve", "--own", "x", "--max-model-len", "8"), package=package, version="0.9.1")


def test_a_flag_may_be_defined_by_its_name_in_any_of_the_defining_files(package):
    front = package / "entrypoints" / "openai"
    front.mkdir(parents=True)
    (front / "cli_args.py").write_text('parser.add_argument("--kv-cache-memory-bytes")\n')
    check_engine(ARGV, package=package, version="0.9.1")


def test_an_engine_whose_sources_cannot_be_read_is_not_judged(tmp_path):
    check_engine(ARGV, package=tmp_path, version="0.9.1")


def test_the_engine_that_the_tests_run_knows_every_flag_of_ours():
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    assert unknown_flags(sorted(ADDED_FLAGS), Path(spec.origin).parent) == []


@pytest.mark.parametrize(
    ("model", "there", "missing"),
    [
        ("s3://bucket/llama", (), "runai_model_streamer and runai_model_streamer_s3"),
        ("gs://bucket/llama", ("runai_model_streamer", "runai_model_streamer_s3"), "runai_model_streamer_gcs"),
    ],
)
def test_an_engine_without_the_library_for_an_object_store_is_refused(model, there, missing):
    with pytest.raises(PlanError) as refused:
        check_streamer(model, is_there=lambda name: name in there)
    assert refused.value.reason == "StreamerMissing"
    assert str(refused.value) == (
        f"the engine's image lacks {missing}, by which vLLM loads {model}: use vLLM's own image, or install "
        "vllm[runai] in yours"
    )


def test_an_engine_with_the_library_or_with_a_model_of_another_source_is_not_refused():
    check_streamer("s3://bucket/llama", is_there=lambda _: True)
    for model in ("org/llama", "/models/llama"):
        check_streamer(model, is_there=lambda _: False)
