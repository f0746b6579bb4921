"""How long an answer will be: learned online, corrected by what came, never used to cut anything."""

from uellm.sidecar.prediction.accuracy import Accuracy, Track, kendall_tau
from uellm.sidecar.prediction.online import LengthQuestion, OnlineLengths, Prediction

__all__ = ["Accuracy", "LengthQuestion", "OnlineLengths", "Prediction", "Track", "kendall_tau"]
