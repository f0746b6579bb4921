"""The engine's preStop hook: asks the sidecar to drain and waits until it has."""

from __future__ import annotations

import http.client
import secrets
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from uellm import drain_token
from uellm.placement_report import LOG_PREFIX

# Where the operator does not say it, as in earlier releases, whose pods have a grace period of 90 s.
TIMEOUT_S = 75.0


def drain(url: str, directory: Path, *, timeout_s: float = TIMEOUT_S) -> int:
    """POST and wait. 0: drained, or no sidecar left to ask; 1: it is there and did not, with a line on stderr.

    `directory`: shared with the sidecar alone; the request's secret is written there.
    """
    headers = {drain_token.HEADER: _new_token(directory / drain_token.FILE)}
    request = urllib.request.Request(url, data=b"", headers=headers, method="POST")
    # Loopback, whatever proxy the container's environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            answer.read()
        return 0
    except urllib.error.HTTPError as error:
        return _failed(url, f"status {error.code}")
    except TimeoutError:
        return _failed(url, f"no answer in {timeout_s:g} s")
    except urllib.error.URLError as error:
        return _failed(url, f"no answer in {timeout_s:g} s") if isinstance(error.reason, TimeoutError) else 0
    except (OSError, http.client.HTTPException):
        return 0  # the sidecar ended while draining


def _new_token(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    with suppress(OSError):  # then the sidecar refuses, and its answer is logged
        path.write_text(token)
    return token


def _failed(url: str, what: str) -> int:
    print(f"{LOG_PREFIX}drain: {url}: {what}", file=sys.stderr, flush=True)
    return 1
