from __future__ import annotations

from uellm.kube.kinds import LLMSERVICE
from uellm.reconcile.cache import Cache
from uellm.reconcile.each_service import EachService


def test_only_services_that_have_changed_are_read_again(make):
    cache, read = Cache(), []

    def replicas(document):
        read.append(document["metadata"]["name"])
        return document["spec"]["replicas"]

    def put(name, version, wanted):
        document = make.service(name)
        document["metadata"] |= {"resourceVersion": str(version), "uid": name}
        document["spec"]["replicas"] = wanted
        cache.put(LLMSERVICE, document)
        return document

    each = EachService(cache, replicas)
    put("b", 1, 1)
    a = put("a", 2, 2)
    assert list(each.now().items()) == [(("ns", "a"), 2), (("ns", "b"), 1)]
    put("b", 3, 5)
    assert each.now() == {("ns", "a"): 2, ("ns", "b"): 5}
    cache.remove(LLMSERVICE, a)
    assert each.now() == {("ns", "b"): 5}
    assert read == ["a", "b", "b"]
