"""`uellm controller --gateway-namespaces`: whose services something can wake."""

from __future__ import annotations

import argparse

import pytest

from uellm.cli import controller


@pytest.mark.parametrize(
    ("arguments", "namespaces"),
    [
        ([], None),
        (["--gateway-namespaces="], frozenset()),
        (["--gateway-namespaces=team-a"], {"team-a"}),
        (["--gateway-namespaces", "team-a, team-b,"], {"team-a", "team-b"}),
    ],
)
def test_not_given_means_all_and_empty_means_none(arguments, namespaces):
    parser = argparse.ArgumentParser()
    controller.add_arguments(parser)
    assert controller.gateway_namespaces(parser.parse_args(arguments).gateway_namespaces) == namespaces
