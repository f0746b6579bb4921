"""`uellm plan -o svg`: well-formed, complete, and with escaped names."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from uellm.cli.plan_svg import MOST_SMALL_NODES, draw
from uellm.planner import plan
from uellm.planner.request import Overrides

SVG = "{http://www.w3.org/2000/svg}"


def drawn(request) -> tuple[ElementTree.Element, str]:
    """The parsed drawing and all the text in it."""
    root = ElementTree.fromstring(draw(plan(request), request))
    return root, "\n".join(root.itertext())


@pytest.fixture
def cases(build):
    linked = build.all_links(build.node("a", "A10 A10 A10 A10"))
    return {
        "one GPU": build.request(build.node("a", "L4")),
        "unlike stages": build.request(build.node("a", "A10 L4"), gpus_min=2),
        "two by two": build.request(linked, overrides=build.overrides(tensor=2, pipeline=2)),
        "eight": build.request(build.node("a", "L4 " * 8), config=build.large),
        "several nodes": build.request(build.node("a", "L4 T4"), build.node("b", "T4 T4"), build.node("c", "L4")),
    }


@pytest.mark.parametrize("case", ["one GPU", "unlike stages", "two by two", "eight", "several nodes"])
def test_a_drawing_is_well_formed_and_names_every_node_and_device(cases, case: str) -> None:
    root, told = drawn(cases[case])
    assert root.tag == f"{SVG}svg"
    for offer in cases[case].nodes:
        assert f"node {offer.node.name}" in told
        for device in offer.node.devices:
            assert device.uuid in told


def test_a_drawing_shows_the_decision_and_the_layers_of_each_device(cases) -> None:
    _, told = drawn(replace(cases["unlike stages"], overrides=Overrides(layers=(20, 12))))
    assert "2 GPUs = tensor 1 x pipeline 2, layers 20,12" in told
    assert "stage 0: layers 0-19" in told
    assert "stage 1: layers 20-31" in told
    assert "Limit: " in told


def test_everything_stays_within_the_drawing(cases) -> None:
    for request in cases.values():
        root, _ = drawn(request)
        width, height = float(root.get("width")), float(root.get("height"))
        for box in root.iter(f"{SVG}rect"):
            assert 0 <= float(box.get("x")) <= float(box.get("x")) + float(box.get("width")) <= width
            assert 0 <= float(box.get("y")) <= float(box.get("y")) + float(box.get("height")) <= height


def test_unused_gpus_show_the_reason(build) -> None:
    devices = [
        build.gpu("a", 0),
        build.gpu("a", 1, health_state="Quarantined", health_reason="XID79"),
        build.gpu("a", 2, excluded_reason="on loan"),
        build.gpu("a", 3),
        build.gpu("a", 4),
    ]
    _, told = drawn(build.request(build.offer(build.node("a", devices), taken=[3])))
    for words in ("gpu-1 · quarantined: XID79", "gpu-2 · excluded: on loan", "gpu-3 · in use", "gpu-4 · unused"):
        assert words in told


def test_links_between_stages_show_their_kind(build) -> None:
    node = build.all_links(build.node("a", "A10 L4"), kind="PHB", bytes_per_s=2e10)
    _, told = drawn(build.request(node, gpus_min=2))
    assert "from stage 0 to stage 1: PHB 20 GB/s" in told


def test_names_with_markup_in_them_are_text(build) -> None:
    given = build.node("a", [build.gpu("a", 0, product="L4", uuid="GPU-<script>&\"'\x00")])
    request = replace(build.request(given), service="default/<b>&x")
    root, told = drawn(request)
    assert "GPU-<script>&\"'?" in told
    assert "default/<b>&x" in told
    assert not list(root.iter("script"))


def test_infeasible_targets_are_in_the_drawing(build) -> None:
    _, told = drawn(build.request(build.node("a", "L4"), classes=(replace(build.chat[0], tpot_s=0.001),)))
    assert "not feasible" in told
    assert "It takes a target of TPOT" in told


def test_nodes_beyond_the_limit_are_counted(build) -> None:
    nodes = [build.node(f"n{index:03}", "L4") for index in range(MOST_SMALL_NODES + 6)]
    _, told = drawn(build.request(*nodes))
    assert "and 5 more nodes, 5 of which would do as well" in told
