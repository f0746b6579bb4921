"""Looking a model up on a hub: facts, refusals, limits; on real sockets."""

from __future__ import annotations

import json
import struct

import pytest

from helpers.hub_server import COMMIT, hub_server, tensor_file
from helpers.mistral import NEMO
from uellm.hub import LookUpRefusal, connection
from uellm.hub.addresses import AddressRefused, NoAddress, is_public, public_address
from uellm.hub.connection import HubSettings
from uellm.hub.lookup import look_up
from uellm.hub.remedies import OF_SERVICES
from uellm.models import Tensor
from uellm.models.tasks import SENTENCE_TRANSFORMERS

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 256}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def hub():
    with hub_server() as server:
        server.files = {
            "config.json": json.dumps(CONFIG).encode(),
            "model.safetensors": tensor_file({"a": [4, 2], "b": [3]}),
        }
        yield server


def asked(hub, revision="main", *, token="", repository="org/model"):
    return look_up(repository, revision, HubSettings(hub.url, token))


def contents(found):
    return found.commit, found.config, found.tensors, found.files


# Facts.


def test_a_name_alone_gives_configuration_tensors_and_commit(hub):
    found = asked(hub)
    tensors = {"a": Tensor("BF16", (4, 2)), "b": Tensor("BF16", (3,))}
    assert (contents(found), found.tensor_bytes) == ((COMMIT, CONFIG, tensors, 1), 22)


def test_everything_after_the_configuration_is_read_at_its_commit(hub):
    asked(hub)
    first, *others = [path for path, _ in hub.asked]
    assert first == "/org/model/resolve/main/config.json"
    assert {path.split("/")[4] for path in others} == {COMMIT}


def test_the_files_of_an_index_are_read_and_no_weights(hub):
    names = [f"model-{number}.safetensors" for number in range(5)]
    hub.files |= {name: tensor_file({f"t{number}": [1000, 1000]}) for number, name in enumerate(names)}
    hub.files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {f"t{number}": name for number, name in enumerate(names)}}
    ).encode()
    found = asked(hub)
    assert found.tensors == {f"t{number}": Tensor("BF16", (1000, 1000)) for number in range(5)}
    assert hub.sent_bytes < 5 * 70_000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_long_header_is_read_whole_from_servers_with_and_without_ranges(hub, ranges):
    hub.ranges = ranges
    hub.files["model.safetensors"] = tensor_file({"a": [4]}, padding=200_000)
    assert asked(hub).tensors == {"a": Tensor("BF16", (4,))}


def test_an_embedder_in_a_chat_models_class_is_known_by_its_modules_file(hub):
    assert SENTENCE_TRANSFORMERS not in asked(hub).config
    hub.files["modules.json"] = b"[]"
    assert asked(hub).config == {**CONFIG, SENTENCE_TRANSFORMERS: True}


def test_a_class_that_is_an_embedder_needs_no_further_look(hub):
    hub.files["config.json"] = json.dumps({**CONFIG, "architectures": ["BertModel"]}).encode()
    asked(hub)
    assert not any(path.endswith("modules.json") for path, _ in hub.asked)


def test_the_quantization_file_becomes_a_section_of_the_configuration(hub):
    hub.files["hf_quant_config.json"] = json.dumps({"quantization": {"quant_algo": "FP8"}}).encode()
    assert asked(hub).config["quantization_config"]["quant_method"] == "modelopt"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_repository_with_weights_in_another_form_has_a_configuration_alone(hub, name):
    hub.files[name] = hub.files.pop("model.safetensors")
    assert contents(asked(hub)) == (COMMIT, CONFIG, None, 0)


def test_a_repository_in_mistrals_own_format_is_read_as_the_engine_reads_it(hub):
    shapes = {"tok_embeddings.weight": [4, 2], "output.weight": [4, 2]}
    hub.files = {"params.json": json.dumps(NEMO).encode(), "consolidated.safetensors": tensor_file(shapes)}
    found = asked(hub)
    assert (found.commit, found.config["architectures"], found.files) == (COMMIT, ["MistralForCausalLM"], 1)
    assert set(found.tensors) == set(shapes)
    assert [path for path, _ in hub.asked][:2] == [
        f"/org/model/resolve/main/{name}" for name in ("config.json", "params.json")
    ]


@pytest.mark.parametrize(
    ("params", "weights", "length"),
    [
        ({"max_seq_len": 32_768}, "consolidated.safetensors", 32_768),
        ({}, "consolidated.safetensors.index.json", 128_000),
        ({"max_seq_len": 262_144, "max_position_embeddings": 262_144}, "consolidated.safetensors", 131_072),
        ({"max_seq_len": 32_768}, "consolidated.00.pth", 131_072),
        ({"n_layers": None}, "consolidated.safetensors", 131_072),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_the_context_of_mistrals_own_file_counts_where_the_engine_reads_it_and_it_is_shorter(
    hub, params, weights, length, nested
):
    text = {"max_position_embeddings": 131_072}
    config = {**CONFIG, "text_config": text} if nested else {**CONFIG, **text}
    hub.files |= {
        "config.json": json.dumps(config).encode(),
        "params.json": json.dumps({**NEMO, **params}).encode(),
        weights: b'{"weight_map": {"a": "model.safetensors"}}',
    }
    found = asked(hub).config
    assert (found["text_config"] if nested else found)["max_position_embeddings"] == length


def test_many_consolidated_files_are_found_by_their_index(hub):
    names = [f"consolidated-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"tok_embeddings.weight": names[0], "output.weight": names[1]}}
    hub.files = {
        "params.json": json.dumps(NEMO).encode(),
        "consolidated.safetensors.index.json": json.dumps(index).encode(),
        names[0]: tensor_file({"tok_embeddings.weight": [4, 2]}),
        names[1]: tensor_file({"output.weight": [4, 2]}),
    }
    assert (asked(hub).files, set(asked(hub).tensors)) == (2, {"tok_embeddings.weight", "output.weight"})
    del hub.files[names[1]]
    assert asked(hub).message.endswith(f"consolidated.safetensors.index.json names {names[1]}, which is not there")


def test_one_copy_of_the_weights_is_counted_where_there_are_two(hub):
    hub.files["consolidated.safetensors"] = tensor_file({"output.weight": [4, 2]})
    assert set(asked(hub).tensors) == {"a", "b"}


def test_a_file_that_is_none_of_mistrals_is_told_in_one_line(hub):
    hub.files = {"params.json": b'{"learning_rate": 1}', "model.safetensors": tensor_file({"a": [4]})}
    assert asked(hub).message == (
        f"{hub.url}/org/model cannot be read: params.json: names no dim and n_layers: it is not of Mistral's format"
    )


def test_a_mirror_that_tells_no_commit_keeps_the_revision(hub, monkeypatch):
    monkeypatch.setattr("helpers.hub_server.COMMIT", "none")
    assert asked(hub).commit == "main"


def test_a_branch_with_a_slash_is_one_part_of_the_path(hub):
    hub.revisions = ("refs/pr/7", COMMIT)
    assert asked(hub, "refs/pr/7").commit == COMMIT
    assert hub.asked[0][0] == "/org/model/resolve/refs%2Fpr%2F7/config.json"


def test_a_token_is_sent_to_the_endpoint(hub):
    hub.token = "hf_secret"
    assert asked(hub, token="hf_secret").config == CONFIG


# Refusals.


def refusal(found) -> tuple[str, str]:
    assert isinstance(found, LookUpRefusal)
    return found.reason, found.message


def test_a_gated_repository_names_the_page_to_accept(hub):
    hub.token = "hf_secret"
    page = f"{hub.url}/org/model"
    message = f"{page} is gated: accept its terms on that page, and give a token of that account (HF_TOKEN)"
    assert refusal(asked(hub)) == ("Gated", message)


def test_a_repository_that_is_not_there_may_be_private(hub):
    what = "does not exist, or is private: correct its name, or give a token that may read it (HF_TOKEN)"
    assert refusal(asked(hub, repository="org/other")) == ("NoSuchRepository", f"{hub.url}/org/other {what}")


def test_a_revision_that_is_not_there_is_named(hub):
    message = f"{hub.url}/org/model has no revision 'v9': give a branch, tag or commit that is listed there"
    assert refusal(asked(hub, "v9")) == ("NoSuchRevision", message)


def test_a_repository_without_a_configuration_is_no_model(hub):
    del hub.files["config.json"]
    message = f"{hub.url}/org/model has neither config.json nor params.json: it is no model that the engine can read"
    assert refusal(asked(hub)) == ("NoConfiguration", message)


@pytest.mark.parametrize("files", [{"config.json": CONFIG}, {"params.json": NEMO}])
def test_a_repository_without_weights_says_so(hub, files):
    hub.files = {name: json.dumps(content).encode() for name, content in files.items()}
    what = "has neither safetensors nor PyTorch weights: name a repository or directory that has them"
    assert refusal(asked(hub)) == ("NoWeights", f"{hub.url}/org/model {what}")


def test_who_writes_a_service_is_told_the_fields_to_set(hub):
    hub.token = "hf_secret"
    found = look_up("org/model", "main", HubSettings(hub.url, remedies=OF_SERVICES))
    assert refusal(found)[1].endswith("give a token of that account (spec.model.tokenSecretRef)")
    with hub_server() as gone:
        pass
    found = look_up("org/model", "main", HubSettings(gone.url, remedies=OF_SERVICES))
    what = (
        "set HF_ENDPOINT to a mirror or HTTPS_PROXY to a proxy in spec.engine.env, or put the model's config.json into "
        "spec.model.config"
    )
    assert refusal(found)[1].endswith(f"): {what}")


@pytest.mark.parametrize(
    ("headers", "wait_s", "when"),
    [
        ({"Retry-After": "37"}, 37.0, "in 37 s"),
        ({"RateLimit": '"api";r=0;t=242'}, 242.0, "in 242 s"),
        ({"Retry-After": "soon"}, None, "later"),
    ],
)
def test_a_limited_rate_says_when_to_ask_again(hub, headers, wait_s, when):
    hub.failure = (429, headers)
    found = asked(hub)
    message = f"{hub.url} limits the rate of requests: ask again {when}, or give a token (HF_TOKEN)"
    assert (refusal(found), found.retry_after_s) == (("RateLimited", message), wait_s)


def test_a_server_error_is_told_with_its_status(hub):
    hub.failure = (502, {})
    message = f"{hub.url}/org/model was answered with status 502: ask again later"
    assert refusal(asked(hub)) == ("Unreachable", message)


def test_an_endpoint_that_does_not_answer_says_what_to_set():
    with hub_server() as gone:
        pass
    reason, message = refusal(asked(gone))
    assert reason == "Unreachable"
    assert message.startswith(f"{gone.url} cannot be reached (")
    what = (
        "set HF_ENDPOINT to a mirror or HTTPS_PROXY to a proxy, or put the model's config.json into spec.model.config"
    )
    assert message.endswith(f"): {what}")


# Redirects.


def test_a_redirect_to_the_endpoint_itself_is_followed(hub):
    hub.redirects = {"config.json": "{}", "model.safetensors": hub.url + "{}"}
    found = asked(hub)
    assert (found.commit, set(found.tensors)) == (COMMIT, {"a", "b"})


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:9/x",
        "http://169.254.169.254/latest/meta-data",
        "http://10.96.0.1/api",
        "http://[::1]:9/x",
        "http://[::ffff:10.0.0.1]/x",
        "http://[64:ff9b::a00:1]/x",
        "http://[fe80::1]/x",
        "http://localhost:9/x",
        "http://0.0.0.0/x",
    ],
)
def test_no_redirect_leads_into_the_cluster_s_network(hub, target):
    hub.redirects = {"config.json": target}
    reason, message = refusal(asked(hub))
    assert reason == "AddressRefused"
    assert "only public addresses are followed, and HF_ENDPOINT itself" in message
    assert len(hub.asked) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://x/y", "http://user@x/y", "//", "http://"])
def test_a_redirect_to_no_web_address_is_refused(hub, target):
    hub.redirects = {"config.json": target}
    assert refusal(asked(hub))[0] == "InvalidAnswer"


def test_redirects_without_end_are_refused(hub):
    hub.redirects = {"config.json": "/org/model/resolve/main/config.json"}
    assert refusal(asked(hub)) == ("InvalidAnswer", f"{hub.url} redirects more than 5 times")


def test_another_host_is_connected_to_at_the_address_that_was_checked_and_gets_no_token(hub, monkeypatch):
    with hub_server() as store:
        store.files = hub.files
        port = store.url.rpartition(":")[2]
        monkeypatch.setattr(connection, "public_address", lambda host, _: {"files.example": "127.0.0.1"}[host])
        hub.token = "hf_secret"
        hub.redirects = {"model.safetensors": f"http://files.example:{port}{{}}"}
        assert set(asked(hub, token="hf_secret").tensors) == {"a", "b"}
        [(path, headers)] = store.asked
    assert (path, headers["host"]) == ("/stored/model.safetensors", f"files.example:{port}")
    assert "authorization" not in headers


# Hostile answers: one line, no traceback.


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"[" * 100_000, "config.json is not JSON"),
        (b"<html>", "config.json is not JSON"),
        (b"\xff\xfe", "config.json is not JSON"),
        (b"[1]", "config.json is no JSON object"),
        (b'{"a": "' + b"x" * (5 << 20) + b'"}', "config.json has more than 4,194,304 bytes, which is the limit"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_line(hub, content, cause):
    hub.files["config.json"] = content
    assert refusal(asked(hub)) == ("InvalidAnswer", f"{hub.url}/org/model cannot be read: {cause}")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (struct.pack("<Q", 1 << 60), f"it claims a header of {1 << 60} bytes"),
        (struct.pack("<Q", 1000) + b"{}", "its header has 2 of 1000 bytes"),
        (struct.pack("<Q", 2) + b"[]", "its header is not an object"),
        (tensor_file({"a": [4]})[:-1], "is cut short"),
        (b"abc", "is cut short"),
    ],
)
def test_a_tensor_file_that_cannot_be_read_is_one_line(hub, content, cause):
    hub.files["model.safetensors"] = content
    reason, message = refusal(asked(hub))
    assert (reason, cause in message, "\n" in message) == ("InvalidAnswer", True, False)


@pytest.mark.parametrize(
    ("index", "cause"),
    [
        ({"weight_map": {"a": "../../secret"}}, "not one beside it"),
        ({"weight_map": {}}, "no weight_map"),
        ([], "no weight_map"),
        ({"weight_map": {"a": "gone.safetensors"}}, "names gone.safetensors, which is not there"),
        (
            {"weight_map": {str(n): f"{n}.safetensors" for n in range(2000)}},
            "it has 2000 files of tensors; at most 1024 are read",
        ),
    ],
)
def test_an_index_that_cannot_be_used_is_one_line(hub, index, cause):
    hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    reason, message = refusal(asked(hub))
    assert (reason, cause in message) == ("InvalidAnswer", True)


# Addresses.


@pytest.mark.parametrize("text", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "fe80::1%eth0", "x"])
def test_addresses_that_are_not_of_the_public_internet(text):
    assert not is_public(text)


def test_public_addresses_and_names_without_one(monkeypatch):
    assert is_public("1.1.1.1")
    assert is_public("2606:4700::1111")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("1.1.1.1", 1))])
    assert public_address("good", 1) == "1.1.1.1"
    both = [(0, 0, 0, "", ("1.1.1.1", 1)), (0, 0, 0, "", ("10.0.0.1", 1))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: both)
    assert public_address("mixed", 1) == AddressRefused("10.0.0.1")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(OSError))
    assert public_address("gone", 1) == NoAddress()


def test_endpoint_and_token_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_TOKEN", " hf_x\n")
    assert HubSettings.from_environment() == HubSettings("https://mirror.example", "hf_x")
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.delenv("HF_TOKEN")
    assert HubSettings.from_environment() == HubSettings("https://huggingface.co", "")
