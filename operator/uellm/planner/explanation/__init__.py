"""Explanations for people: what limits a plan, why an alternative was rejected, the best that is possible."""
