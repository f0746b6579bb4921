"""A learned model of the answers' lengths beside the online one: trees, trained and asked in a process of its own.

frames   what goes through its pipes        lengths  asks, judges and uses it
forest   the trees, in the child            process  keeps the child running
child    the process
"""

from uellm.sidecar.prediction.learned.lengths import Asked, LearnedLengths
from uellm.sidecar.prediction.learned.process import Child

__all__ = ["Asked", "Child", "LearnedLengths"]
