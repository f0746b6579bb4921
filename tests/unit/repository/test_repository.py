"""What the repository guarantees about itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from uellm_devcluster import tinymodel

ROOT = Path(__file__).parents[3]


def test_the_source_root_is_not_a_package_because_it_would_hide_the_standard_librarys_operator():
    assert not (ROOT / "operator" / "__init__.py").exists()
    code = "import operator, uellm; assert operator.add(1, 2) == 3"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_demo_s_service_carries_the_configuration_of_the_model_that_the_demo_makes():
    sample = yaml.safe_load((ROOT / "manifests" / "samples" / "demo-tiny-llama.yaml").read_text())
    assert sample["spec"]["model"]["config"] == tinymodel.config()


def test_ci_runs_the_same_command_as_a_person():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
