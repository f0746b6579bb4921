"""How the cache keeps an object."""

from __future__ import annotations

import msgspec

from uellm.kube.kinds import CONFIGMAP, LLMSERVICE, POD
from uellm.reconcile.stored import stored

TEXT = msgspec.json.encode(
    {
        "metadata": {"name": "llama", "uid": "u", "resourceVersion": "1"},
        "status": {"plan": {"reason": "the least GPUs that keep the targets", "nodes": ["node-a", "node-b"]}},
    }
)


def read():
    return msgspec.json.decode(TEXT)


def test_an_object_comes_back_equal_whatever_its_kind():
    for kind in (LLMSERVICE, CONFIGMAP):
        kept = stored(kind, read())
        assert kept.object == read()
        assert kept.identity == ("u", "1")


def test_equal_texts_of_two_objects_that_are_kept_whole_are_kept_once():
    one, other = (stored(POD, read()).object["status"]["plan"] for _ in range(2))
    assert one is not other
    assert one["reason"] is other["reason"]
    assert one["nodes"][0] is other["nodes"][0]


def test_an_object_that_is_nested_too_deeply_is_kept_as_it_is():
    template = {}
    for _ in range(5000):
        template = {"nested": template}
    deep = {**read(), "spec": {"template": template}}
    assert stored(LLMSERVICE, deep).object is deep


def test_what_could_be_stored_can_be_read_from_a_deeper_call():
    def read_deeper(kept, calls):
        return read_deeper(kept, calls - 1) if calls else kept.object

    packed = set()
    for levels in range(700, 1001, 10):
        template = {}
        for _ in range(levels):
            template = {"nested": template}
        kept = stored(LLMSERVICE, {**read(), "spec": {"template": template}})
        assert "spec" in read_deeper(kept, 80)
        packed.add(type(kept).__name__ == "_Packed")
    assert packed == {True, False}
