"""Debian packages: the error names the missing ones and the command that installs them."""

from __future__ import annotations

import pytest

from uellm_devcluster import packages
from uellm_devcluster.errors import ClusterError


def test_installed_packages_are_not_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(packages.PROOFS, "shell", "/bin/sh")
    monkeypatch.setitem(packages.PROOFS, "unicorn", "/no/such/horn")
    assert packages.missing(["shell", "unicorn"]) == ["unicorn"]


def test_without_root_the_command_to_type_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(packages.PROOFS, "unicorn", "/no/such/horn")
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(packages.shutil, "which", lambda *_, **__: "/usr/bin/apt-get")
    with pytest.raises(ClusterError, match="missing: unicorn; as root: apt-get install unicorn"):
        packages.ensure(["unicorn"])


def test_a_machine_without_apt_gets_its_own_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(packages.PROOFS, "unicorn", "/no/such/horn")
    monkeypatch.setattr(packages.shutil, "which", lambda *_, **__: None)
    with pytest.raises(ClusterError, match="no apt-get"):
        packages.ensure(["unicorn"])
