"""The example of docs/how-to/claim-exact-gpus.md: what a node with unlike GPUs serves with and without claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from uellm.cli.main import main

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "how-to" / "claim-exact-gpus.md").read_text()
NODES = str(ROOT / "docs" / "examples" / "unlike-node.yaml")
SERVICE = (ROOT / "docs" / "examples" / "llama-3.3-70b.yaml").read_text()


def planned(tmp_path: Path, placement: str, *options: str) -> int:
    path = tmp_path / "service.yaml"
    path.write_text(SERVICE.replace("  slo:\n", f"  placement: {placement}\n  slo:\n"))
    return main(["plan", "-f", str(path), "--profiles", NODES, *options])


@pytest.mark.parametrize("allocation", ["DevicePlugin", "DRA"])
def test_the_page_has_the_predicted_rates(tmp_path, capsys, allocation):
    assert planned(tmp_path, f"{{allocation: {allocation}}}") == 0
    text = capsys.readouterr().out
    gpus = re.search(r"^GPUs +(\d+) ", text, flags=re.MULTILINE)
    figures = re.search(r"TPOT ([\d.]+ ms), up to ([\d.]+) requests/s", text)
    assert gpus
    assert figures
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `allocation: {allocation}` |"))
    assert f"| {gpus[1]}: " in row
    assert f"| {figures[1]} | {figures[2]} |" in row


def test_a_device_plugin_has_no_plan_for_the_two_large_gpus_alone(tmp_path, capsys):
    assert planned(tmp_path, "{allocation: DevicePlugin, gpus: {max: 2}}") == 1
    assert "NeedsExactDevices" in capsys.readouterr().err


def test_auto_claims_and_says_why(tmp_path, capsys):
    assert planned(tmp_path, "{allocation: Auto}") == 0
    assert "claims its GPUs by DRA: 2 GPUs in all instead of 4" in " ".join(capsys.readouterr().out.split())
