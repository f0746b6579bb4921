"""Predicts output lengths. Learned online, corrected by the real lengths, never used to cut an answer."""

from uellm.sidecar.prediction.accuracy import Accuracy, Track, kendall_tau
from uellm.sidecar.prediction.online import LengthQuestion, OnlineLengths, Prediction

__all__ = ["Accuracy", "LengthQuestion", "OnlineLengths", "Prediction", "Track", "kendall_tau"]
