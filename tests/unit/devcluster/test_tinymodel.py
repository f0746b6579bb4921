from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from uellm_devcluster import tinymodel

pytest.importorskip("tokenizers", reason="the engine-cpu extra is not installed")
pytest.importorskip("safetensors", reason="the engine-cpu extra is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tinymodel")
    tinymodel.make(directory)
    return directory


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(model, tmp_path):
    tinymodel.make(tmp_path / "again")
    tinymodel.make(tmp_path / "other", seed=1)
    for path in model.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    weights = "model.safetensors"
    assert (tmp_path / "other" / weights).read_bytes() != (model / weights).read_bytes()


def test_the_files_fit_the_configuration(model):
    from safetensors import safe_open
    from tokenizers import Tokenizer

    config = json.loads((model / "config.json").read_text())
    assert config == tinymodel.config()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id("</s>") == config["eos_token_id"]
    with safe_open(model / "model.safetensors", "np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 not a dict
    assert shapes["lm_head.weight"] == [config["vocab_size"], config["hidden_size"]]
    layers = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    assert len(layers) == config["num_hidden_layers"]


def test_its_text_never_ends_by_itself(model):
    from safetensors.numpy import load_file

    head = load_file(model / "model.safetensors")["lm_head.weight"]
    assert not head[tinymodel.config()["eos_token_id"]].any()
    assert head.any(axis=1).sum() > 3000


def test_an_engine_under_another_user_can_read_it(model):
    assert model.stat().st_mode & stat.S_IXOTH
    assert all(path.stat().st_mode & stat.S_IROTH for path in model.iterdir())


def test_a_prompt_survives_the_tokenizer(model):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = "[user] How much is 2 + 2, naïve friend?\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
