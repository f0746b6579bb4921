"""The examples in the planner's docstrings are correct."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import uellm.planner

MODULES = [module.name for module in pkgutil.walk_packages(uellm.planner.__path__, "uellm.planner.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
