from __future__ import annotations

import pytest

from uellm.reconcile.children import PinnedTemplate


def test_a_pinned_template_survives_being_written_down():
    pinned = PinnedTemplate("tp1 pp2 layers 5,3 on a", {"spec": {"containers": [{"name": "engine"}]}})
    assert PinnedTemplate.from_json(pinned.to_json()) == pinned


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", '{"shape": "x"}', '{"shape": "x", "template": 1}', "x"])
def test_what_is_not_a_pinned_template_is_none(text):
    assert PinnedTemplate.from_json(text) is None
