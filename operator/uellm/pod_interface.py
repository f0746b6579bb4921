"""What the programs of an engine's pod agree on: ports, paths of the sidecar's metrics port, files.

The operator writes the pod, and launcher, engine and sidecar find their way in it. This module imports nothing, because
the launcher runs in the engine's image.
"""

SERVICE_PORT = 80
"""Port of the Service, for clients in the cluster."""

SIDECAR_PORT = 8000
"""The pod's port for requests."""

ENGINE_PORT = 8001
"""vLLM's port, on the pod's loopback address."""

METRICS_PORT = 8002
"""The sidecar's port for metrics, probes and reports."""

PROBE_PORT = 8003
"""Port of the engine's parent for the kubelet's probes of the engine."""

NODE_COPY_PORT = 8008
"""Port of the container that copies the model to the node's disk: how far it is."""

GROUP_PORT = 8006
"""Port of the leader's launcher, where a replica spans nodes: the group agrees there before the engine starts."""

GROUP_MASTER_PORT = 8007
"""Port at which the engine's processes of such a replica find each other."""

# Paths of the sidecar's metrics port.
PLACEMENT_PATH = "/uellm/placement"
RUNNING_PATH = "/uellm/running"
ATTAINMENT_PATH = "/uellm/slo"
DRAIN_PATH = "/uellm/drain"
LOAD_PATH = "/uellm/load"
ENGINE_LIVE_PATH = "/engine/live"
MODEL_PATH = "/uellm/model"
"""Of the inspection pod, on the same port: what it has found out about the model; status 503 while it reads."""
DOWNLOAD_PATH = "/uellm/download"
"""Of the download pod, on the same port: how far it is, or how it ended."""
ADAPTER_PATH = "/adapter"
"""Of the engine's parent, on PROBE_PORT: it downloads a LoRA adapter to where the engine can read it."""
ADAPTER_TOKEN_FILE = "adapter-token"
"""Beside the placement report: a secret that only the pod's containers can read."""
ADAPTER_TOKEN_HEADER = "X-Uellm-Adapter-Token"
HANGING_FIELD = "hanging"
"""Of the answers at the paths of the engine: true where it has requests and makes no progress."""
ENGINE_READY_PATH = "/engine/ready"

# Files that the operator publishes in ConfigMaps, by name.
PLAN_FILE = "plan.json"
ENGINE_FILE = "engine.yaml"
SIDECAR_FILE = "sidecar.yaml"
DEVICES_FILE = "devices.json"

CONFIG_DIRECTORY = "/etc/uellm"
"""Holds SIDECAR_FILE."""
REVISION_DIRECTORY = "/etc/uellm-revision"
"""Holds PLAN_FILE and ENGINE_FILE."""
DEVICES_DIRECTORY = "/etc/uellm-devices"
"""Holds DEVICES_FILE, where there is one."""
KEYS_DIRECTORY = "/etc/uellm-auth"
"""Holds the API keys. Not below CONFIG_DIRECTORY: nothing can be mounted into a read-only volume."""
RUN_DIRECTORY = "/run/uellm"
"""Shared by engine and sidecar alone."""
PLACEMENT_FILE = f"{RUN_DIRECTORY}/placement.json"
"""The launcher's placement report."""
COMPILED_DIRECTORY = "/var/cache/uellm-compiled"
"""Where the engine may keep what it compiles beyond its container, where there is such a place."""
STATE_DIRECTORY = "/var/lib/uellm"
"""What the sidecar keeps over a restart of its container."""
BIN_DIRECTORY = "/uellm-bin"
LAUNCHER_FILE = f"{BIN_DIRECTORY}/launcher.pyz"

LAME_DUCK_S = 5.0
"""How long a draining sidecar still takes requests: a few rounds of endpoint controller and kube-proxy."""

ENGINE_ENDS_IN_S = 30
"""How long an engine may take to end by itself: vLLM's --shutdown-timeout of 20 s, and a margin."""

# Variables of the sidecar's container.
PLACEMENT_VARIABLE = "UELLM_PLACEMENT"
STATE_VARIABLE = "UELLM_STATE_DIRECTORY"
POD_IP_VARIABLE = "POD_IP"
"""Of the engine's container, where a replica spans nodes."""
