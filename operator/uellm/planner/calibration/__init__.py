"""Fits the step-time model to measurements of a real engine."""
