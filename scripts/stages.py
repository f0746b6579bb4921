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
    for title, command in pairs:
        print(f"\n=== {title}: {command}", flush=True)
        began_s = time.monotonic()
        status = subprocess.call(command, shell=True)
        rows.append((title, status, time.monotonic() - began_s))
    width = max(len(title) for title, _, _ in rows)
    print(f"\n{'stage'.ljust(width)}  result  seconds")
    for title, status, seconds in rows:
        print(f"{title.ljust(width)}  {'ok' if status == 0 else 'FAILED':6}  {seconds:7.1f}")
    return 0 if all(status == 0 for _, status, _ in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
