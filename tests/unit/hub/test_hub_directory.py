"""Reading a model's facts from a directory of a volume: what is there, and what is refused."""

from __future__ import annotations

import json
import os
import struct

import pytest

from helpers.hub_server import tensor_file
from uellm.hub import LookUpRefusal
from uellm.hub.directory import read_directory_facts
from uellm.models import Tensor

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 256}
WHERE = "pvc://models/llama"


@pytest.fixture
def volume(tmp_path):
    directory = tmp_path / "volume" / "llama"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "model.safetensors").write_bytes(tensor_file({"a": [4, 2]}))
    return tmp_path / "volume"


def read(volume):
    return read_directory_facts(volume / "llama", volume, WHERE)


def refusal(volume) -> tuple[str, str]:
    found = read(volume)
    assert isinstance(found, LookUpRefusal)
    return found.reason, found.message


def test_a_directory_has_configuration_and_tensors_and_no_commit(volume):
    found = read(volume)
    assert (found.commit, found.config, found.files) == ("", CONFIG, 1)
    assert found.tensors == {"a": Tensor("BF16", (4, 2))}


def test_without_an_index_every_file_of_tensors_counts_but_mistral_s_copy(volume):
    (volume / "llama" / "part.safetensors").write_bytes(tensor_file({"b": [3]}))
    (volume / "llama" / "consolidated.safetensors").write_bytes(tensor_file({"c": [3]}))
    assert set(read(volume).tensors) == {"a", "b"}


def test_a_long_header_is_read_whole(volume):
    (volume / "llama" / "model.safetensors").write_bytes(tensor_file({"a": [4]}, padding=200_000))
    assert read(volume).tensors == {"a": Tensor("BF16", (4,))}


def test_the_quantization_file_becomes_a_section_of_the_configuration(volume):
    (volume / "llama" / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert read(volume).config["quantization_config"]["quant_method"] == "modelopt"


def test_links_inside_the_volume_are_followed_as_the_hub_s_cache_has_them(volume):
    blobs = volume / "blobs"
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (volume / "llama" / name).rename(blobs / name)
        (volume / "llama" / name).symlink_to(f"../blobs/{name}")
    assert set(read(volume).tensors) == {"a"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "hf_quant_config.json"])
def test_a_link_out_of_the_volume_is_refused(volume, name):
    outside = volume.parent / "secret"
    outside.write_text("{}")
    (volume / "llama" / name).unlink(missing_ok=True)
    (volume / "llama" / name).symlink_to(outside)
    cause = f"{name} is a link that leads out of the volume"
    assert refusal(volume) == ("InvalidAnswer", f"{WHERE} cannot be read: {cause}")


def test_a_directory_that_is_a_link_out_of_the_volume_is_refused(volume, tmp_path):
    (volume / "llama").rename(tmp_path / "elsewhere")
    (volume / "llama").symlink_to(tmp_path / "elsewhere")
    assert refusal(volume)[1].endswith("config.json is a link that leads out of the volume")


def test_a_pipe_is_no_file_and_holds_nobody_up(volume):
    (volume / "llama" / "config.json").unlink()
    os.mkfifo(volume / "llama" / "config.json")
    assert refusal(volume) == ("InvalidAnswer", f"{WHERE} cannot be read: config.json is no file")


@pytest.mark.parametrize("gone", ["config.json", "."])
def test_a_directory_without_a_configuration_is_no_model(volume, gone):
    if gone == ".":
        (volume / "llama").rename(volume / "other")
    else:
        (volume / "llama" / gone).unlink()
    message = f"{WHERE} has neither config.json nor params.json: it is no model that the engine can read"
    assert refusal(volume) == ("NoConfiguration", message)


def test_a_directory_without_weights_says_so(volume):
    (volume / "llama" / "model.safetensors").unlink()
    assert refusal(volume)[0] == "NoWeights"
    (volume / "llama" / "pytorch_model.bin").write_bytes(b"x")
    assert read(volume).tensors is None


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"[" * 100_000, "config.json is not JSON"),
        (b"\xff", "config.json is not JSON"),
        (b"[1]", "config.json is no JSON object"),
        (b'{"a": "' + b"x" * (5 << 20) + b'"}', "config.json has more than 4,194,304 bytes, which is the limit"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_line(volume, content, cause):
    (volume / "llama" / "config.json").write_bytes(content)
    assert refusal(volume) == ("InvalidAnswer", f"{WHERE} cannot be read: {cause}")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (struct.pack("<Q", 1 << 60), f"it claims a header of {1 << 60} bytes"),
        (struct.pack("<Q", 1000) + b"{}", "its header has 2 of 1000 bytes"),
        (tensor_file({"a": [4]})[:-1], "is cut short"),
    ],
)
def test_a_tensor_file_that_cannot_be_read_is_one_line(volume, content, cause):
    (volume / "llama" / "model.safetensors").write_bytes(content)
    reason, message = refusal(volume)
    assert (reason, cause in message, "\n" in message) == ("InvalidAnswer", True, False)


def test_headers_have_a_limit_together(volume, monkeypatch):
    monkeypatch.setattr("uellm.hub.reading.HEADERS_BYTES", 100)
    for number in range(3):
        (volume / "llama" / f"{number}.safetensors").write_bytes(tensor_file({f"t{number}": [1]}))
    assert "headers of its files have more than 100 bytes" in refusal(volume)[1]


def test_a_file_that_may_not_be_read_says_for_whom(volume, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refused)
    what = f"config.json: Permission denied; let the user of the pods (uid {os.getuid()}) read it"
    assert refusal(volume) == ("Unreadable", f"{WHERE} cannot be read: {what}")
