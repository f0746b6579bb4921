"""Which label keeps Karpenter from adding a node for a pod that waits."""

from __future__ import annotations

import pytest

from uellm.hardware import NodeNeeds
from uellm.kube import Forbidden, NotFound
from uellm.reconcile.children.node_affinity import node_affinity
from uellm.reconcile.node_pools import FRESH_S, NodePools, missing_labels, pool_labels

NEEDS = NodeNeeds("nvidia.com/gpu", 1, 40_000, 40_000, (8, 0))
GFD = ("nvidia.com/gpu.count", "nvidia.com/gpu.memory", "nvidia.com/gpu.compute.major")


def pod(**spec):
    return {"affinity": {"nodeAffinity": node_affinity(NEEDS, extender=False)}, **spec}


def pool(*labels, requirements=()):
    template = {"metadata": {"labels": dict.fromkeys(labels, "1")}}
    return {"spec": {"template": {**template, "spec": {"requirements": [{"key": key} for key in requirements]}}}}


def test_the_labels_of_a_pool_are_those_of_its_template_and_its_requirements():
    assert pool_labels(pool("a/b", requirements=["c/d"])) == {"a/b", "c/d"}
    assert pool_labels({}) == frozenset()


@pytest.mark.parametrize(
    ("pools", "missing"),
    [
        ([], ()),
        ([pool(*GFD)], ()),
        ([pool()], tuple(sorted(GFD))),
        ([pool(), pool(*GFD[:2])], ("nvidia.com/gpu.compute.major",)),
        ([pool("uellm.io/gpu.count", "uellm.io/gpu.memory", "uellm.io/gpu.capability")], ()),
    ],
)
def test_the_labels_that_the_nearest_pool_lacks_are_missing(pools, missing):
    assert missing_labels(tuple(map(pool_labels, pools)), pod()) == missing


def test_labels_of_the_user_s_selector_count_and_well_known_ones_do_not():
    selector = {"team": "a", "node.kubernetes.io/instance-type": "p5", "karpenter.sh/capacity-type": "spot"}
    assert missing_labels((frozenset(GFD),), pod(nodeSelector=selector)) == ("team",)


class Server:
    def __init__(self, *answers):
        self.answers = list(answers)
        self.now_s = 0.0

    async def list(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_pools_are_read_again_only_after_a_while():
    server = Server([pool("a")], [pool("b")])
    pools = NodePools(server.list, lambda: server.now_s)
    assert [await pools.labels(), await pools.labels()] == [(frozenset("a"),)] * 2
    server.now_s = FRESH_S
    assert await pools.labels() == (frozenset("b"),)


@pytest.mark.parametrize("error", [NotFound(404, "NotFound", "no"), Forbidden(403, "Forbidden", "no")])
async def test_a_cluster_without_karpenter_or_without_the_right_to_read_it_has_no_pools(error):
    assert await NodePools(Server(error).list, lambda: 0.0).labels() == ()
