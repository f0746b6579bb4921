"""The measuring program as it runs in the engine's image: one file, python3 and torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from uellm.errors import CannotBeDone
from uellm.measuring.all_reduce import group_times
from uellm.measuring.build import build
from uellm.measuring.store import read_document

FAKE_TORCH = """
import time
print("torch is being imported", flush=True)
time.sleep(600)
"""


BROKEN_TORCH = """
from types import SimpleNamespace

__version__ = "2.0"
version = SimpleNamespace(cuda=None)
uint8 = bfloat16 = float16 = float8_e4m3fn = float32 = None

def device(name):
    return SimpleNamespace(type="cpu")

def lost(*_, **__):
    raise RuntimeError("the device is lost")

empty = zeros = ones = randn = lost
"""


SIGNALLED_AT_ONCE = """
import os, signal, time
from uellm.measuring.__main__ import supervised

os.register_at_fork(after_in_child=lambda: time.sleep(60))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
supervised(lambda: 0)
"""


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("zipapp") / "measuring.pyz"
    build(output)
    return output


def command(zipapp: Path, directory: Path, *, on: str = "CPU") -> list[str]:
    return [sys.executable, str(zipapp), f"--directory={directory}", f"--on={on}", "--mark=m1"]


def test_the_same_sources_give_the_same_bytes_and_nothing_of_other_rooms(zipapp, tmp_path):
    build(tmp_path / "again.pyz")
    assert (tmp_path / "again.pyz").read_bytes() == zipapp.read_bytes()
    rooms = {name.split("/")[1] for name in zipfile.ZipFile(zipapp).namelist() if name.startswith("uellm/")}
    assert rooms == {"__init__.py", "documents.py", "errors.py", "measuring"}


@pytest.mark.timeout(300)  # imports torch, on a machine that may be busy
def test_it_measures_the_device_that_it_was_given_and_marks_the_end(zipapp, tmp_path):
    pytest.importorskip("torch")
    environment = {**os.environ, "NVIDIA_VISIBLE_DEVICES": "GPU-a", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        command(zipapp, tmp_path), env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    document = read_document(tmp_path)
    assert document is not None
    assert (document.on, document.finished, document.failures) == ("CPU", "m1", ())
    assert document.torch_version
    assert document.devices["GPU-a"].measured_at


@pytest.mark.timeout(300)
def test_a_group_reduces_by_a_process_for_each_device(zipapp):
    pytest.importorskip("torch")
    times = group_times([sys.executable, str(zipapp)], 2, "CPU")
    assert list(times) == [2**14, 2**16, 2**18, 2**20, 2**22, 2**24]
    assert min(times.values()) > 1000


def test_a_group_whose_process_fails_says_why_in_its_last_line(zipapp, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('no NCCL')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CannotBeDone, match=r"^ImportError: no NCCL$"):
        group_times([sys.executable, str(zipapp)], 2, "CPU")


def test_it_ends_at_once_when_it_gets_a_signal_whatever_torch_is_doing(zipapp, tmp_path):
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    environment = {"PYTHONPATH": str(tmp_path), "NVIDIA_VISIBLE_DEVICES": "GPU-a", "PATH": "/nonexistent"}
    with subprocess.Popen(command(zipapp, tmp_path), env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "torch is being imported\n"
        start_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        # The pipe ends with the last process that has it.
        assert process.stdout.read() == ""
        assert process.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - start_s < 2  # the pod's grace period


def test_a_signal_ends_a_process_too_that_has_not_come_to_its_first_line():
    words = [sys.executable, "-c", SIGNALLED_AT_ONCE]
    # The pipes end with the last process that has them.
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")


def test_a_device_that_torch_cannot_use_is_one_line_and_no_result_that_anybody_would_take_for_done(zipapp, tmp_path):
    (tmp_path / "torch.py").write_text(BROKEN_TORCH)
    environment = {"PYTHONPATH": str(tmp_path), "NVIDIA_VISIBLE_DEVICES": "GPU-a", "PATH": "/nonexistent"}
    done = subprocess.run(
        command(zipapp, tmp_path), env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "measuring: GPU-a cannot be measured: launch of GPU-a: the device is lost"
    document = read_document(tmp_path)
    assert document is not None
    assert document.finished == ""
    assert "memory of GPU-a: the device is lost" in document.failures


def test_without_torch_it_names_the_image_to_use(zipapp, tmp_path):
    environment = {"NVIDIA_VISIBLE_DEVICES": "GPU-a", "PATH": "/nonexistent"}
    words = [sys.executable, "-S", *command(zipapp, tmp_path)[1:]]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"measuring: torch is not installed for {sys.executable}: use the engine's image")
    assert len(done.stderr.splitlines()) == 1


def test_without_a_driver_it_says_so_in_one_line(zipapp, tmp_path):
    done = subprocess.run(
        command(zipapp, tmp_path, on="GPU"),
        env={"PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("measuring: nvidia-smi does not list the GPUs: ")
    assert len(done.stderr.splitlines()) == 1
