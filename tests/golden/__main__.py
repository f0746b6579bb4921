"""Records the current code's plans: `make golden`."""

from __future__ import annotations

import json
import lzma
import time
from collections import Counter

from golden.outputs import outputs
from golden.record import RECORD
from golden.services import cases


def main() -> None:
    """Write the record."""
    began, found = time.monotonic(), {case.name: outputs(case) for case in cases()}
    took_s = time.monotonic() - began
    text = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
    RECORD.write_bytes(lzma.compress(text.encode(), preset=9))
    kinds = Counter(each["error"]["reason"] if "error" in each else "planned" for each in found.values())
    print(f"{RECORD}: {RECORD.stat().st_size / 1024:.0f} KiB, {took_s:.1f} s, {dict(kinds)}")


if __name__ == "__main__":
    main()
