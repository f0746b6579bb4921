from __future__ import annotations

from uellm.reconcile.packed_texts import PackedTexts

TEXTS = {"plan.json": '{"nodes": "ä"}' * 50, "engine.yaml": ""}


def test_texts_come_back_as_they_were():
    packed = PackedTexts(TEXTS)
    assert dict(packed) == TEXTS
    assert list(packed) == list(TEXTS)
    assert len(packed) == 2
    assert "claim.json" not in packed
    assert packed.get("claim.json") is None


def test_equal_texts_are_equal_packed_or_not():
    assert PackedTexts(TEXTS) == PackedTexts(dict(reversed(TEXTS.items()))) == TEXTS
    assert PackedTexts(TEXTS) != PackedTexts(TEXTS | {"engine.yaml": "a"})
    assert PackedTexts(TEXTS) != {}
