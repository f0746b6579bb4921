"""`python -m uellm_devcluster.demo`: on a real cluster where possible, else the same service by `uellm run`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from uellm_devcluster.demo import cluster, local
from uellm_devcluster.demo.story import StepFailed, Story
from uellm_devcluster.errors import ClusterError


def main() -> int:
    """Run the demo. Exit status 0 only if every step succeeded."""
    signal.signal(signal.SIGTERM, _interrupt)
    story = Story()
    try:
        try:
            _on_a_cluster(story)
        except cluster.NoCluster as reason:
            print(f"This machine cannot run a cluster: {reason}. The same service runs without one, by `uellm run`.")
            local.run(story)
    except (StepFailed, ClusterError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
    print(f"\n{story.table()}", flush=True)
    return 0 if story.went_well else 1


def _on_a_cluster(story: Story) -> None:
    if reason := local.why_no_cluster():
        raise cluster.NoCluster(reason)
    programs = cluster.find_programs(story)
    try:
        cluster.run(story, programs)
    finally:
        if cluster.wants_to_keep():
            print(
                "\nKEEP is set: the cluster keeps running. "
                "export KUBECONFIG=$(uellm cluster kubeconfig); uellm cluster down"
            )
        else:
            with story.step("cluster down"):
                cluster.down()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    raise SystemExit(main())
