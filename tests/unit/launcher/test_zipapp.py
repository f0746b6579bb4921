from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.launch import plan_document
from uellm.launcher.build import MODULES, build

ONE_CLASS = [{"product": "NVIDIA L4", "memoryBytes": 24 << 30}]


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("zipapp") / "launcher.pyz"
    build(output)
    return output


@pytest.fixture
def fake_vllm(tmp_path: Path) -> Path:
    """A package named vllm whose main prints its command line and environment."""
    package = tmp_path / "site" / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for part in (package, *package.parents[:2]):
        (part / "__init__.py").write_text("")
    (package / "main.py").write_text(
        "import json, os, sys\nprint(json.dumps({'argv': sys.argv[1:], 'env': dict(os.environ)}))\n"
    )
    return tmp_path / "site"


def run(zipapp: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the zipapp without site-packages and without this checkout. PYTHONPATH names further packages."""
    return subprocess.run(
        [sys.executable, "-S", str(zipapp), *args],
        env={"PATH": "/nonexistent", **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_signal_ends_it_from_its_first_moment_on(zipapp):
    main = zipfile.ZipFile(zipapp).read("__main__.py").decode()
    before_the_imports = main.partition("from uellm")[0] + "os.kill(os.getpid(), signal.SIGTERM)"
    assert subprocess.run([sys.executable, "-c", before_the_imports], timeout=30, check=False).returncode == 143


def test_the_same_sources_give_the_same_bytes(zipapp, tmp_path):
    again = tmp_path / "again.pyz"
    build(again)
    assert again.read_bytes() == zipapp.read_bytes()


def test_it_carries_what_the_launcher_imports_and_nothing_else(zipapp):
    names = zipfile.ZipFile(zipapp).namelist()
    rooms = {name.split("/")[1] for name in names if name.startswith("uellm/")}
    modules = {module for module in names if module.count("/") == 1}
    assert modules == {f"uellm/{module}" for module in MODULES}
    assert rooms == {*MODULES, "hardware", "models", "planner", "launcher"}
    assert [name for name in names if not name.startswith("uellm/")] == ["__main__.py"]
    assert all(name.endswith(".py") for name in names)


def test_it_binds_reports_and_becomes_the_engine_with_numpy_and_no_other_package(
    zipapp, fake_vllm, packages_alone, tmp_path
):
    plan, placement = tmp_path / "plan.json", tmp_path / "placement.json"
    plan.write_text(json.dumps(plan_document(layersOverride=None, classes=ONE_CLASS)))
    result = run(
        *(zipapp, "--plan", str(plan), "--placement", str(placement), "--listen", "127.0.0.1:8001"),
        PYTHONPATH=f"{packages_alone(['numpy'])}:{fake_vllm}",
        NVIDIA_VISIBLE_DEVICES="GPU-b,GPU-a",
    )
    assert result.returncode == 0, result.stderr
    engine, report = json.loads(result.stdout), json.loads(placement.read_text())
    assert engine["argv"] == report["argv"][3:]
    assert engine["env"]["VLLM_PP_LAYER_PARTITION"] == ",".join(map(str, report["layers"]))


def test_a_missing_numpy_is_one_line_that_names_the_image_to_use(zipapp, tmp_path):
    plan, placement = tmp_path / "plan.json", tmp_path / "placement.json"
    plan.write_text(json.dumps(plan_document(layersOverride=None, classes=ONE_CLASS)))
    result = run(zipapp, "--plan", str(plan), "--placement", str(placement))
    error = json.loads(placement.read_text())["error"]
    assert result.returncode == 1
    assert result.stderr == f"uellm launcher: NumpyMissing: {error['message']}\n"
    assert error["reason"] == "NumpyMissing"
    assert error["message"] == (
        f"numpy is not installed for {sys.executable}, and the launcher places the layers with it: use vLLM's own "
        "image, or add numpy to yours"
    )


def test_a_failure_is_one_line_and_exit_status_1(zipapp, tmp_path):
    result = run(zipapp, "--plan", str(tmp_path / "none"), "--placement", str(tmp_path / "placement.json"))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert json.loads((tmp_path / "placement.json").read_text())["error"]["reason"] == "BadPlan"


def test_the_file_can_be_executed(zipapp):
    assert os.access(zipapp, os.X_OK)
    assert zipapp.read_bytes().startswith(b"#!/usr/bin/env python3\n")
