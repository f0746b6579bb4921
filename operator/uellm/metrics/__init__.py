"""Prometheus metrics of the operator's own processes: what several of them count, and the server that shows it.

The sidecar has metrics of its own (`uellm.sidecar.telemetry`): it must not depend on more than it needs.
"""
