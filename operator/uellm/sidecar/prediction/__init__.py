"""How long an answer will be: learned online, corrected by what came, never used to cut anything."""

from uellm.sidecar.prediction.accuracy import Accuracy, Track, kendall_tau
from uellm.sidecar.prediction.online import OnlineLengths, Prediction, Question

__all__ = ["Accuracy", "OnlineLengths", "Prediction", "Question", "Track", "kendall_tau"]
