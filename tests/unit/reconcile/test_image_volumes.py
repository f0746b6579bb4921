"""Whether the API server has image volumes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from uellm.kube import Forbidden, Invalid
from uellm.reconcile.image_volumes import ImageVolumes, no_image_volumes

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DROPPED = Invalid(
    422,
    "Invalid",
    'Pod "x" is invalid: spec.volumes[0]: Required value: must specify a volume type',
    causes=(("spec.volumes[0]", "Required value: must specify a volume type"),),
)
UNKNOWN = Invalid(400, "BadRequest", 'strict decoding error: unknown field "spec.volumes[0].image"')
OTHER = Invalid(422, "Invalid", "spec.securityContext: Invalid value")
QUOTA = Forbidden(403, "Forbidden", "exceeded quota: pods")


class Server:
    """An API server that gives its answers in turn; None: it takes the pod."""

    def __init__(self, *answers):
        self.answers, self.tried = list(answers), []

    async def __call__(self, pod):
        self.tried.append(pod)
        if (answer := self.answers.pop(0)) is not None:
            raise answer
        return pod


@pytest.mark.parametrize("answer", [DROPPED, UNKNOWN])
async def test_a_server_that_drops_or_does_not_know_the_field_has_none_and_is_asked_again_later(answer):
    server = Server(answer, answer, None)
    volumes = ImageVolumes(server)
    assert [await volumes.are_missing("ns", NOW + timedelta(seconds=each)) for each in (0, 1, 599)] == [True] * 3
    assert len(server.tried) == 1
    assert await volumes.are_missing("ns", NOW + timedelta(seconds=600))
    assert not await volumes.are_missing("ns", NOW + timedelta(seconds=1200))
    assert not await volumes.are_missing("ns", NOW + timedelta(seconds=9000))
    assert len(server.tried) == 3


@pytest.mark.parametrize("answer", [None, OTHER, QUOTA])
async def test_a_server_that_takes_the_pod_or_refuses_something_else_is_asked_once(answer):
    server = Server(answer)
    volumes = ImageVolumes(server)
    assert [await volumes.are_missing(each, NOW) for each in ("a", "b")] == [False, False]
    assert [pod["metadata"]["namespace"] for pod in server.tried] == ["a"]


def test_the_sentence_says_what_to_do():
    assert no_image_volumes("oci://ghcr.io/org/model") == (
        "NoImageVolumes",
        "oci://ghcr.io/org/model would be mounted as an image volume, and this API server has none: upgrade to "
        "Kubernetes 1.35 or enable the feature gate ImageVolume (from 1.31 on) on the API server and the kubelets, or "
        "copy the files to a claim and use pvc://",
    )
