"""What a kubeconfig names, and what is said of one that cannot be used."""

from __future__ import annotations

import json
import sys

import pytest

from uellm.errors import BadInput, CannotBeDone
from uellm.kube.config import load, namespace


@pytest.fixture
def kubeconfig(tmp_path):
    def write(name: str, *contexts: tuple[str, str], current: str = "") -> str:
        file = tmp_path / name
        named = [{"name": c, "context": {"cluster": "c", "user": "u", "namespace": n}} for c, n in contexts]
        empty = {"name": "bare", "context": {"cluster": "c", "user": "u"}}
        document = {"apiVersion": "v1", "kind": "Config", "contexts": [*named, empty], "clusters": [], "users": []}
        file.write_text(json.dumps({**document, **({"current-context": current} if current else {})}))
        return str(file)

    return write


def test_the_namespace_is_that_of_the_current_or_the_given_context(kubeconfig):
    file = kubeconfig("config", ("a", "team-a"), ("b", "team-b"), current="a")
    assert namespace(file) == "team-a"
    assert namespace(file, "b") == "team-b"
    assert namespace(file, "bare") == ""
    assert namespace(file, "nowhere") == ""


def test_files_of_kubeconfig_are_merged(kubeconfig, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", f"{kubeconfig('one', current='b')}:{kubeconfig('two', ('b', 'team-b'))}")
    assert namespace() == "team-b"


def test_a_pod_has_the_namespace_of_its_service_account(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("t")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr("uellm.kube.config.SERVICE_ACCOUNT_TOKEN", tmp_path / "token")
    assert namespace() == ""
    (tmp_path / "namespace").write_text("team-a\n")
    assert namespace() == "team-a"


@pytest.mark.parametrize("content", [b"k\xfc", b"- a", b"contexts: 3\ncurrent-context: a", b"{"])
def test_what_is_no_kubeconfig_is_named(content, tmp_path):
    file = tmp_path / "config"
    file.write_bytes(content)
    with pytest.raises(BadInput, match="config: not a kubeconfig that can be used"):
        namespace(str(file))


async def test_what_is_wrong_with_it_is_told_in_one_line(tmp_path):
    file = tmp_path / "config"
    file.write_text("contexts: [a\nusers: }")
    with pytest.raises(BadInput, match="config: not a kubeconfig that can be used") as by_load:
        await load(str(file))
    with pytest.raises(BadInput, match="config: not a kubeconfig that can be used") as by_namespace:
        namespace(str(file))
    assert "\n" not in f"{by_load.value}{by_namespace.value}"


def with_user(tmp_path, user) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": user}],
    }
    file = tmp_path / "config"
    file.write_text(json.dumps(document))
    return str(file)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["no-such-plugin"], "No such file or directory"),
        ([sys.executable, "-c", "exit(3)"], "returned 3"),
    ],
)
async def test_an_exec_plugin_that_fails_is_named_with_its_kubeconfig(tmp_path, caplog, command, words):
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": command[0], "args": command[1:]}
    file = with_user(tmp_path, {"exec": plugin})
    with pytest.raises(CannotBeDone, match="the exec plugin of its user gave no credentials") as error:
        await load(file)
    assert str(error.value).startswith(file)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not caplog.records


async def test_credentials_beside_a_plugin_that_fails_are_used(tmp_path):
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin"}
    found = await load(with_user(tmp_path, {"exec": plugin, "token": "t"}))
    assert found.api_key == {"BearerToken": "Bearer t"}
