"""What goes wrong with a cluster on this machine, as one line that a person can act on."""

from __future__ import annotations


class ClusterError(Exception):
    """The cluster, or a thing it needs, cannot be had: fact, cause, what to change. Exit status 1."""
