"""Errors of a cluster on this machine, each one line that a person can act on."""

from __future__ import annotations


class ClusterError(Exception):
    """The cluster, or something that it needs, is not available: fact, cause, what to change. Exit status 1."""
