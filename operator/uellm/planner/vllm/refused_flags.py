"""vLLM's flags and variables that a user may not set, because the operator depends on them, and what to do instead.

They are checked twice: by the controller before a pod exists, and by the launcher before it execs the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

_LOOPBACK = "the engine listens on loopback, behind the sidecar"
_KEYS = "the sidecar checks keys, and every request comes through it: use spec.auth.apiKeysSecretRef"
_TLS = "TLS ends before the pod: use an ingress or a mesh"
_SHAPE = "the plan decides it: use spec.parallelism"
_DEVICES = "the launcher orders the pod's devices by the plan"
_ONE_POD = "the ranks of a replica run in one pod: use spec.placement and spec.replicas"

REFUSED: Mapping[str, str] = {
    "--host": _LOOPBACK,
    "--port": _LOOPBACK,
    "--uds": _LOOPBACK,
    "--grpc": _LOOPBACK,
    "--root-path": "the sidecar serves the API at /",
    "--api-key": _KEYS,
    "--ssl-keyfile": _TLS,
    "--ssl-certfile": _TLS,
    "--ssl-ca-certs": _TLS,
    "--ssl-cert-reqs": _TLS,
    "--ssl-ciphers": _TLS,
    "--enable-ssl-refresh": _TLS,
    "--config": "it could set any of the flags refused here: give its flags one by one in spec.engine.args",
    "--model": "use spec.model.uri",
    "--revision": "use spec.model.revision",
    "--served-model-name": "use spec.model.servedName",
    "--tensor-parallel-size": _SHAPE,
    "-tp": _SHAPE,
    "--pipeline-parallel-size": _SHAPE,
    "-pp": _SHAPE,
    "--prefill-context-parallel-size": _SHAPE,
    "-pcp": _SHAPE,
    "--device-ids": _DEVICES,
    "--distributed-executor-backend": _DEVICES,
    "--data-parallel-size": _ONE_POD,
    "--data-parallel-size-local": _ONE_POD,
    "--data-parallel-rank": _ONE_POD,
    "--data-parallel-start-rank": _ONE_POD,
    "--data-parallel-address": _ONE_POD,
    "--data-parallel-rpc-port": _ONE_POD,
    "--data-parallel-backend": _ONE_POD,
    "--data-parallel-hybrid-lb": _ONE_POD,
    "--data-parallel-external-lb": _ONE_POD,
    "--data-parallel-multi-port-external-lb": _ONE_POD,
    "-dp": _ONE_POD,
    "-dpn": _ONE_POD,
    "-dpr": _ONE_POD,
    "-dpl": _ONE_POD,
    "-dpa": _ONE_POD,
    "-dpp": _ONE_POD,
    "-dpb": _ONE_POD,
    "-dph": _ONE_POD,
    "-dpe": _ONE_POD,
    "-dpm": _ONE_POD,
    "--nnodes": _ONE_POD,
    "-n": _ONE_POD,
    "--node-rank": _ONE_POD,
    "-r": _ONE_POD,
    "--master-addr": _ONE_POD,
    "--master-port": _ONE_POD,
    "--headless": _ONE_POD,
}

REFUSED_ENVIRONMENT: Mapping[str, str] = {"VLLM_API_KEY": _KEYS}

# The launcher always sets these. A user who sets them has a purpose, so the controller refuses them with a message
# instead of silently replacing them. In the container's environment they may also come from the image.
DECIDED_ENVIRONMENT: Mapping[str, str] = {
    "CUDA_VISIBLE_DEVICES": "the launcher sets it to the devices that the pod got, in the order of the stages",
    "VLLM_PP_LAYER_PARTITION": "use spec.parallelism.layers, which is checked before any pod exists",
}


def refused_args(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The refused flags in `args`, as the user wrote them, each with what to do instead.

    vLLM's parser accepts abbreviations (`--por 1`) and underscores (`--api_key`), so a prefix of a refused flag is
    refused, too. No permitted flag of vLLM is a prefix of a refused one.

    >>> list(refused_args(["--max-num-seqs", "8", "--por=80"]))
    [('--por', 'the engine listens on loopback, behind the sidecar')]
    """
    for argument in args:
        if argument == "--":
            yield argument, "it would end the flags, and the operator's own come after: leave it out"
        flag = flag_name(argument)
        instead = next((why for refused, why in REFUSED.items() if flag and _means(flag, refused)), None)
        if instead:
            yield argument.split("=", 1)[0], instead


def _means(flag: str, refused: str) -> bool:
    """`--por` means `--port`, and `-n2` means `-n 2`."""
    return refused.startswith(flag) or (len(refused) == 2 and flag.startswith(refused))


def flag_name(argument: str) -> str:
    """The flag in one argument, in the form of vLLM's parser and without a value; empty if the argument is a value.

    >>> flag_name("--max_model_len=8k"), flag_name("-cc.mode=2"), flag_name("-1"), flag_name("16")
    ('--max-model-len', '-cc', '', '')
    """
    if not argument.startswith("-") or not argument.strip("-") or argument.lstrip("-")[0].isdigit():
        return ""
    return argument.split("=", 1)[0].split(".", 1)[0].replace("_", "-")
