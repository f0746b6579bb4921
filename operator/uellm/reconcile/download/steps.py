"""What is said about a service's model while it is copied. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

from uellm.hub.copy_state import Copied, Progress, described
from uellm.reconcile.download.download_state import DownloadState, copied, downloading, refused, undecided
from uellm.reconcile.helper_pods import trouble
from uellm.reconcile.helper_pods.steps import Attempt, HelperInputs, HelperStep, HelperWords, Pod

FAILED = "DownloadFailed"
SOON_S, LATER_S = 2.0, 10.0
"""How often the progress is asked for, and shown, near the end and before."""
KEPT_S = 120.0
"""For how long it is shown after a pod has fallen silent."""


class ToldProgress(NamedTuple):
    """What a pod said of its progress, and when."""

    pod_uid: str
    state: DownloadState
    at: datetime


def download_inputs(
    source: str,
    claim: str,
    generation: int,
    copy: Copied | None,
    pods: Sequence[Pod],
    attempt: Attempt[DownloadState] | None,
    warnings: Mapping[str, str],
    pulls: Mapping[str, str],
) -> HelperInputs[DownloadState]:
    """What a step of a download depends on."""
    words = HelperWords(partial(downloading, claim), refused, undecided, FAILED, "the model could not be copied")
    known = None if copy is None else copied(claim, copy)
    return HelperInputs(words, source, generation, known, pods, attempt, warnings, pulls)


def after_progress(step: HelperStep[DownloadState], claim: str, progress: Progress) -> HelperStep[DownloadState]:
    """The pod is at work."""
    soon = progress.left_s is None or progress.left_s < 60.0
    state = downloading(claim, described(progress))
    return dataclasses.replace(step, state=state, create=False, ask=None, again_s=SOON_S if soon else LATER_S)


def after_silence(
    step: HelperStep[DownloadState], claim: str, pod: Pod, now: datetime, told: ToldProgress | None = None
) -> HelperStep[DownloadState]:
    """The pod does not answer. `told`: what it said last."""
    again_s = LATER_S if trouble.is_hidden(pod, now) else step.again_s
    if told is not None and told.pod_uid == pod["metadata"]["uid"] and now - told.at < timedelta(seconds=KEPT_S):
        # A missed answer is no news: the status would change to and fro.
        return dataclasses.replace(step, state=told.state, create=False, ask=None, again_s=again_s)
    state = downloading(claim, trouble.silent(pod, now))
    return dataclasses.replace(step, state=state, create=False, ask=None, again_s=again_s)
