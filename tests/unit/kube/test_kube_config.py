"""Which namespace a kubeconfig names."""

from __future__ import annotations

import json

import pytest

from uellm.errors import BadInput
from uellm.kube.config import namespace


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
