"""A learned model of output lengths beside the online one: boosted trees in a process of their own.

frames   what goes through its pipes        lengths  asks, judges and uses it
forest   the trees, in the child            process  keeps the child running
child    the process
"""

from uellm.sidecar.prediction.learned.lengths import Asked, LearnedLengths
from uellm.sidecar.prediction.learned.process import Child

__all__ = ["Asked", "Child", "LearnedLengths"]
