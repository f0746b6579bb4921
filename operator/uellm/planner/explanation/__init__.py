"""Reasons for people: what limits a plan, why an alternative lost, the best that can be had."""
