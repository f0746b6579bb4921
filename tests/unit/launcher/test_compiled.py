"""Where the engine keeps what it compiles."""

from __future__ import annotations

import os
from types import SimpleNamespace

from uellm.launcher.compiled import LEAST_FREE_BYTES, cache_variables, compile_cache

H100 = "NVIDIA H100 80GB HBM3"
HOME = {"HOME": "/var/cache/uellm", "VLLM_CACHE_ROOT": "/var/cache/uellm/vllm"}


def test_each_version_and_each_kind_of_gpus_has_a_directory(tmp_path):
    place, problem = compile_cache(tmp_path, "0.32.0+cu129", [H100, H100])
    assert (place, problem) == (tmp_path / "0.32.0+cu129" / "NVIDIA-H100-80GB-HBM3", "")
    assert place.is_dir()
    mixed, _ = compile_cache(tmp_path, "0.32.0", ["L4", H100, "L4"])
    assert mixed == tmp_path / "0.32.0" / "L4+NVIDIA-H100-80GB-HBM3"
    unknown, _ = compile_cache(tmp_path, "of an unknown version", [""])
    assert unknown == tmp_path / "of-an-unknown-version" / "unknown"


def test_names_lead_nowhere_else(tmp_path):
    place, _ = compile_cache(tmp_path / ".", "../../etc", ["../x"])
    assert place.resolve().is_relative_to(tmp_path)


def test_a_service_that_keeps_nothing_has_no_directory_and_no_complaint(tmp_path):
    assert compile_cache(tmp_path / "missing", "0.32.0", [H100]) == (None, "")
    assert cache_variables(None, HOME) == {}


def test_a_volume_that_cannot_be_written_is_told_and_left_alone(tmp_path):
    (tmp_path / "0.32.0").write_text("in the way")
    place, problem = compile_cache(tmp_path, "0.32.0", [H100])
    assert (place, problem) == (None, f"{tmp_path}/0.32.0/NVIDIA-H100-80GB-HBM3: Not a directory")


def test_a_volume_that_is_nearly_full_is_told_and_left_alone(tmp_path, monkeypatch):
    free = SimpleNamespace(f_bavail=LEAST_FREE_BYTES // 4096 - 1, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: free)
    place, problem = compile_cache(tmp_path, "0.32.0", [H100])
    assert place is None
    assert problem.endswith(": 2047 MiB are free, and 2048 MiB are needed")


def test_the_variables_lead_there_unless_the_user_has_set_them_elsewhere(tmp_path):
    environment = {**HOME, "TRITON_CACHE_DIR": "/scratch/triton"}
    assert cache_variables(tmp_path, environment) == {
        "VLLM_CACHE_ROOT": f"{tmp_path}/vllm",
        "TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/inductor",
        "FLASHINFER_WORKSPACE_BASE": f"{tmp_path}/flashinfer",
        "TILELANG_CACHE_DIR": f"{tmp_path}/tilelang",
        "CUDA_CACHE_PATH": f"{tmp_path}/cuda",
    }
