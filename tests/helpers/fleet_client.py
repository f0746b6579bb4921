"""A client inside the cluster, run as `python3 -c`: as many streams at once as /tmp/clients says, until /tmp/stop.

It does as the official clients do: a request that was refused with 429 or 503, or that met a closed connection before
the first byte of its answer, is sent again, five times at most. Arguments: address of the gateway, model.
Without this package's help: the pod has Python's standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request

TRIES = 6
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
lock = threading.Lock()
counts = {"good": 0, "again": 0}
cut: list[str] = []
lost: list[str] = []


def wanted() -> int:
    """How many streams to keep open."""
    try:
        with open("/tmp/clients") as file:
            return int(file.read() or 0)
    except FileNotFoundError:
        return 0


def once(tokens: int) -> str:
    """One stream. Returns "" or what went wrong after its first byte. Raises what went wrong before."""
    body = {"model": sys.argv[2], "prompt": "Once", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    raw = json.dumps(body).encode()
    request = urllib.request.Request(f"http://{sys.argv[1]}/v1/completions", raw, {"Content-Type": "application/json"})
    response = opener.open(request, timeout=600)
    try:
        text = response.read().decode()
    except Exception as error:
        return f"{error!r}"
    ended = text.rstrip().endswith("data: [DONE]") and '"error"' not in text
    return "" if ended else text[-200:]


def ask() -> None:
    """A request, and what became of it."""
    wrong = ""
    for _ in range(TRIES):
        try:
            broken = once(64)
        except urllib.error.HTTPError as error:
            wrong = f"{error.code} {error.read()[:200].decode(errors='replace')}"
            if error.code not in (429, 502, 503):
                break
            wait_s = float(error.headers.get("Retry-After") or 1)
        except Exception as error:
            wrong, wait_s = repr(error), 1.0
        else:
            with lock:
                if broken:
                    cut.append(f"{time.strftime('%H:%M:%S')} {broken}")
                else:
                    counts["good"] += 1
            return
        with lock:
            counts["again"] += 1
        time.sleep(wait_s)
    with lock:
        lost.append(f"{time.strftime('%H:%M:%S')} {wrong}")


def worker(place: int) -> None:
    """One of the clients: it asks while so many are wanted."""
    while not os.path.exists("/tmp/stop"):
        if place < wanted():
            ask()
        else:
            time.sleep(0.2)


def report() -> None:
    """What there is to know so far, for whoever looks."""
    with lock, open("/tmp/report.new", "w") as out:
        json.dump({**counts, "cut": cut, "lost": lost}, out)
    os.replace("/tmp/report.new", "/tmp/report")


def main() -> None:
    """Ask until it is stopped, and then wait to be read and removed."""
    threads = [threading.Thread(target=worker, args=(place,)) for place in range(64)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        report()
        time.sleep(0.5)
    report()
    time.sleep(3600)


if __name__ == "__main__":
    main()
