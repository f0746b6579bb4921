from __future__ import annotations

import copy
import json

from hypothesis import given
from hypothesis import strategies as st

from uellm.reconcile.drift import canonical, content, digest, holds, signed

MANIFEST = {
    "metadata": {"name": "x", "annotations": {"a": "1"}},
    "spec": {
        "replicas": 0,
        "containers": [
            {
                "name": "engine",
                "args": ["a", "b"],
                "resources": {"limits": {"cpu": "1000m", "nvidia.com/gpu": "2"}},
                "env": [{"name": "A", "value": "1"}],
            }
        ],
        "ports": [{"port": 80, "targetPort": "http"}],
        "emptied": [],
        "hostNetwork": False,
    },
}


def live():
    obj = copy.deepcopy(MANIFEST)
    obj["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "1"
    obj["spec"]["containers"][0]["imagePullPolicy"] = "IfNotPresent"
    obj["spec"]["containers"].append({"name": "injected"})
    obj["spec"]["containers"][0]["env"].append({"name": "FOREIGN", "value": "x"})
    obj["spec"]["ports"][0]["protocol"] = "TCP"
    obj["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
    del obj["spec"]["emptied"], obj["spec"]["hostNetwork"]
    return obj


def test_defaults_normal_forms_and_others_fields_are_not_differences():
    assert holds(MANIFEST, live())


def test_every_edit_of_a_field_of_ours_is_a_difference():
    edits = [
        lambda obj: obj["spec"].update(replicas=1),
        lambda obj: obj["spec"]["containers"].pop(0),
        lambda obj: obj["spec"]["containers"][0].update(args=["a", "b", "c"]),
        lambda obj: obj["spec"]["containers"][0]["resources"]["limits"].update(cpu="2"),
        lambda obj: obj["spec"]["containers"][0]["env"][0].update(value="2"),
        lambda obj: obj["spec"]["containers"][0]["env"].pop(0),
        lambda obj: obj["spec"]["ports"][0].update(targetPort="other"),
        lambda obj: obj["metadata"]["annotations"].pop("a"),
        lambda obj: obj["spec"].update(hostNetwork=True),
    ]
    for edit in edits:
        edited = live()
        edit(edited)
        assert not holds(MANIFEST, edited)


def test_a_value_that_only_looks_like_a_quantity_is_compared_as_it_is():
    assert not holds({"value": "1000m"}, {"value": "1"})


def test_the_digest_knows_no_order_of_keys_and_signing_is_stable():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert signed(MANIFEST) == signed(copy.deepcopy(MANIFEST))
    assert signed({**MANIFEST, "spec": {}}) != signed(MANIFEST)


def test_status_and_bookkeeping_do_not_count_as_content():
    one = {"metadata": {"name": "x", "resourceVersion": "1", "generation": 1}, "spec": {}, "status": {"a": 1}}
    other = {"metadata": {"name": "x", "resourceVersion": "2", "generation": 2}, "spec": {}, "status": {"a": 2}}
    assert content(one) == content(other)
    assert content(one) != content({**one, "spec": {"a": 1}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(['"a":1.5', "[1.5", ",1e5"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_digests_are_those_that_earlier_releases_stored(document):
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical(document) == text.encode()
