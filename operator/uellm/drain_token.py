"""The secret with which the engine's preStop hook shows the sidecar that it runs in the same pod.

The hook writes a new one to a file in the directory that only the pod's containers share, and sends it with its
request. The peer's address proves nothing: behind the proxy of a service mesh everybody comes from loopback.
"""

from __future__ import annotations

FILE = "drain-token"
"""Name of the file, beside the placement report."""

HEADER = "X-Uellm-Drain-Token"
