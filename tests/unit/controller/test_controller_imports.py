from __future__ import annotations

import subprocess
import sys

CODE = """
import sys, uellm.cli.controller
print(*{"numpy", "httpx"} & set(sys.modules))
"""


def test_the_operators_own_process_imports_neither_the_search_for_placements_nor_a_hubs_client():
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
