"""Run the stages of `make test` one after the other, then print a table of results and durations.

    python scripts/stages.py "title" "shell command" ["title" "shell command" ...]

All stages run, even after a failure, so that one run shows everything. The exit status is 0 only if all succeeded.
"""

import subprocess
import sys
import time


def main() -> int:
    """Run every (title, command) pair of the command line."""
    pairs = list(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    rows = []
    started_s = time.monotonic()
    for title, command in pairs:
        print(f"\n=== {title}: {command}", flush=True)
        began_s = time.monotonic()
        status = subprocess.call(command, shell=True)
        now_s = time.monotonic()
        rows.append((title, status, now_s - began_s))
        print(
            f"--- {title}: {_word(status)} after {now_s - began_s:.0f} s, {now_s - started_s:.0f} s in all", flush=True
        )
    width = max(len(title) for title, _, _ in rows)
    print(f"\n{'stage'.ljust(width)}  result  seconds")
    for title, status, seconds in rows:
        print(f"{title.ljust(width)}  {_word(status):6}  {seconds:7.1f}")
    return 0 if all(status == 0 for _, status, _ in rows) else 1


def _word(status: int) -> str:
    return "ok" if status == 0 else "FAILED"


if __name__ == "__main__":
    raise SystemExit(main())
