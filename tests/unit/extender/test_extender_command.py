from __future__ import annotations

import pytest

from uellm.cli.main import main


@pytest.mark.parametrize("address", ["8888", "host:", "host:port", "host:70000", ""])
def test_an_invalid_address_is_bad_input(capsys, address):
    assert main(["extender", "--listen", address]) == 2
    assert capsys.readouterr().err.startswith("uellm extender: --listen: ")


def test_without_a_cluster_the_error_says_what_to_set(capsys, tmp_path):
    assert main(["extender", "--listen", "127.0.0.1:0", "--kubeconfig", str(tmp_path / "nowhere")]) == 1
    assert "set KUBECONFIG" in capsys.readouterr().err
