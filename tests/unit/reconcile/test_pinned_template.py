from __future__ import annotations

import pytest

from uellm.reconcile.children import PinnedTemplate


def test_a_pinned_template_is_read_back_as_written():
    pinned = PinnedTemplate("tp1 pp2 layers 5,3 on a", {"spec": {"containers": [{"name": "engine"}]}})
    assert PinnedTemplate.from_json(pinned.to_json()) == pinned


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", '{"shape": "x"}', '{"shape": "x", "template": 1}', "x"])
def test_anything_but_a_pinned_template_reads_as_none(text):
    assert PinnedTemplate.from_json(text) is None
