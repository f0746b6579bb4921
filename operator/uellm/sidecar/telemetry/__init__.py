"""Metrics, attainment of the targets, the access log, and spans."""
