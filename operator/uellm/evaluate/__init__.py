"""Compares queue and placement policies: traces replayed under a virtual clock or against real endpoints."""
