"""Policies, engines and placements compared: traces replayed under a virtual clock or against real endpoints."""
