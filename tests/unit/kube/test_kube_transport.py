from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from uellm.errors import BadInput, CannotBeDone
from uellm.kube import CONFIGMAP, NODE, Kube, Unauthorized, Unavailable, config, transport


async def test_the_token_of_the_kubeconfig_is_sent(server, kube, scripts):
    server.script = [scripts.says({"kind": "Node", "metadata": {"name": "n", "managedFields": [1]}})]
    assert await kube.get(NODE, "n") == {"kind": "Node", "metadata": {"name": "n"}}
    assert server.requests[0].headers["Authorization"] == "Bearer first"


async def test_an_object_that_is_not_there_is_none_and_deleting_it_says_false(server, kube, scripts):
    server.script = [scripts.refuses(404, "NotFound")]
    assert await kube.get(NODE, "n") is None
    assert await kube.delete(NODE, "n") is False


async def test_a_proxy_in_the_environment_is_not_used(server, kubeconfig, scripts, monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.script = [scripts.says({"gitVersion": "v1.36.3"})]
    async with await Kube.connect(kubeconfig=kubeconfig) as kube:
        assert await kube.version() == "v1.36.3"


async def test_a_refused_token_is_read_again_from_the_file(server, kube, kubeconfig, scripts):
    async def only_second(request: web.Request) -> web.StreamResponse:
        fresh = request.headers["Authorization"] == "Bearer second"
        answer = scripts.says({"gitVersion": "v1"}) if fresh else scripts.refuses(401, "Unauthorized")
        return await answer(request)

    server.script = [only_second]
    with pytest.raises(Unauthorized):
        await kube.version()
    scripts.write_kubeconfig(Path(kubeconfig), server.port, "second")
    assert await asyncio.gather(kube.version(), kube.version(), kube.version()) == ["v1"] * 3


async def test_a_kubeconfig_that_vanished_leaves_the_refusal(server, kube, kubeconfig, scripts):
    server.script = [scripts.refuses(401, "Unauthorized")]
    os.unlink(kubeconfig)
    with pytest.raises(Unauthorized):
        await kube.version()


async def test_nobody_listening_is_unavailable_and_names_the_address(tmp_path, scripts, unused_port):
    async with await Kube.connect(kubeconfig=scripts.write_kubeconfig(tmp_path / "k", unused_port)) as kube:
        with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{unused_port} cannot be reached") as caught:
            await kube.get(NODE, "n")
    assert caught.value.transient


async def test_a_server_that_never_answers_is_unavailable(server, kube, scripts, monkeypatch):
    monkeypatch.setattr(transport, "REQUEST_TIMEOUT_S", 0.05)
    server.script = [lambda _: asyncio.Event().wait()]
    with pytest.raises(Unavailable, match="no answer in time"):
        await kube.version()


@pytest.mark.parametrize("document", ["a word", ["a list"]])
async def test_an_answer_that_is_not_an_object_is_unavailable(server, kube, scripts, document):
    server.script = [scripts.says(document)]
    with pytest.raises(Unavailable, match="not an object"):
        await kube.version()


async def test_apply_names_its_manager_and_validates_strictly(server, kube, scripts):
    obj = scripts.config_map("a", "1", x="y")
    server.script = [scripts.says(obj)]
    await kube.apply(obj, manager="uellm", dry_run=True)
    request = server.requests[0]
    assert request.method == "PATCH"
    assert request.path == "/api/v1/namespaces/default/configmaps/a"
    assert request.content_type == "application/apply-patch+yaml"
    assert dict(request.query) == {
        "fieldManager": "uellm",
        "force": "true",
        "fieldValidation": "Strict",
        "dryRun": "All",
    }


async def test_deleting_another_object_of_the_same_name_says_false(server, kube, scripts):
    server.script = [scripts.refuses(409, "Conflict")]
    assert await kube.delete(CONFIGMAP, "a", "default", uid="old") is False


async def test_a_missing_kubeconfig_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(CannotBeDone, match="set KUBECONFIG"):
        await Kube.connect()


@pytest.mark.parametrize(
    "text", ["", "[]", "a: [", "clusters: []\n", "current-context: c\ncontexts: []\nclusters: []\n"]
)
async def test_a_file_that_is_not_a_kubeconfig_is_bad_input_with_its_name(tmp_path, text):
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(BadInput, match="not a kubeconfig"):
        await Kube.connect(kubeconfig=str(path))


async def test_a_pod_with_a_broken_service_account_says_so(tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("")
    monkeypatch.setattr(config, "SERVICE_ACCOUNT_TOKEN", token)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(CannotBeDone, match="service account cannot be used"):
        await Kube.connect()


def test_importing_the_room_leaves_the_slow_package_for_the_first_connection():
    code = "import sys, uellm.kube; print('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
