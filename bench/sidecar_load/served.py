"""The sidecar's process as `uellm sidecar` runs it, but for two things that would hide what a proxy costs.

python -m sidecar_load.served straight|queue ENGINE

straight   nothing is held back: how long a request waits for its turn is for the scheduler's benchmarks to say
queue      one request at a time, and room for 10,000 of 32 KiB, which by default there is not
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

from uellm.http import EngineAddress
from uellm.http.loop import run
from uellm.proxying.log_writer import LogWriter
from uellm.proxying.process import Address
from uellm.sidecar.process import Sidecar, SidecarOptions, serve
from uellm.sidecar.scheduling import Options as Scheduling
from uellm.sidecar.telemetry.access_log import ACCESS_LOG

ROOM_BYTES = 1 << 30


def main(mode: str, engine: str) -> None:
    """Print the port and serve until killed."""
    scheduling = {
        "straight": Scheduling("engine-only", max_queued=20_000, max_in_flight=20_000),
        "queue": Scheduling("FCFS", max_queued=20_000, max_in_flight=1, max_queued_bytes=ROOM_BYTES),
    }[mode]

    def started(sidecar: Sidecar) -> None:
        sidecar.dispatcher.reconfigure(scheduling)
        sidecar.proxy.bodies.limit_bytes = ROOM_BYTES
        print(sidecar.port, flush=True)

    access = LogWriter(open(os.devnull, "w"), "stdout")  # noqa: SIM115 - for as long as the process runs
    access.setFormatter(logging.Formatter("%(message)s"))
    ACCESS_LOG.addHandler(access)
    ACCESS_LOG.setLevel(logging.INFO)
    ACCESS_LOG.propagate = False
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "sidecar.yaml")
        config.write_text("classes: []")
        options = SidecarOptions(Address("127.0.0.1", 0), EngineAddress.parse(engine), config)
        run(serve(options, started))


if __name__ == "__main__":
    main(*sys.argv[1:])
