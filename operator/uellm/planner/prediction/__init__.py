"""Predicts engines that a person describes: one GPU product, one shape, one load each."""
