"""Late binding inside the engine's container: looks at the devices the pod really got, then execs vLLM on them.

Shipped as a zipapp of `uellm.{errors,hardware,models,planner,launcher}` (`python -m uellm.launcher.build OUT.pyz`), run
by the engine image's own interpreter (Python >= 3.10). Of other packages it needs numpy alone, which vLLM depends on:

    python3 /uellm-bin/launcher.pyz --plan /etc/uellm-revision/plan.json --placement /run/uellm/placement.json \
            --listen 127.0.0.1:8001 --probe-port 8003 --sidecar 127.0.0.1:8002
    python3 /uellm-bin/launcher.pyz --drain http://127.0.0.1:8002/uellm/drain          (the preStop hook)

What it needs of the pod:

mounts   `/uellm-bin` (the zipapp), `/etc/uellm-revision` (plan.json, read-only), `/run/uellm` (writable, shared
         with the sidecar: the placement report), `/tmp` and $HOME writable, `/dev/shm` of 2 GiB at least (the ranks
         communicate through it).
env      POD_NAME and NODE_NAME (into the report; optional). NVIDIA_VISIBLE_DEVICES as the device plugin or the
         container runtime sets it; the pod template never sets it.
         HOME, XDG_CACHE_HOME, HF_HOME, VLLM_CACHE_ROOT, USER and LOGNAME: the engine's, not the launcher's; a numeric
         user without a passwd entry needs them.

What it sets for the engine, whatever the container's environment has: CUDA_VISIBLE_DEVICES (uuids in rank order;
absent on the CPU engine) and VLLM_PP_LAYER_PARTITION (absent with one stage). What it sets only where the container's
environment does not: VLLM_HOST_IP and GLOO_SOCKET_IFNAME (loopback: the ranks are all in this pod),
VLLM_NO_USAGE_STATS, HF_HUB_OFFLINE (a model that lies on a mounted path), and on the CPU engine
VLLM_CPU_OMP_THREADS_BIND.

A parent stays behind, as the container's first process: it passes the engine's output on, answers the kubelet's probes
at --probe-port, hands signals on, and ends with the engine's status. Of an engine that fails it writes the cause and
the last lines to /dev/termination-log.

Exit status: the engine's. Where the launcher cannot become the engine, 1: the reason is in the placement report
(`error.reason`, `error.message`), on standard error and in /dev/termination-log.
"""
