"""The examples in the planner's docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import uellm.planner

MODULES = [f"uellm.planner.{module.name}" for module in pkgutil.iter_modules(uellm.planner.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
