"""Names and numbers that several programs must agree on: labels, annotations, ports.

The resource name of GPUs is in `uellm.hardware`, which the launcher and the planner may import too.
"""

GROUP = "uellm.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
LLMSERVICE_KIND = "LLMService"

SERVICE_LABEL = "uellm.io/service"
"""On every child and pod: the name of its LLMService."""

REVISION_LABEL = "uellm.io/revision"
"""On pods and on the ConfigMaps that they are started from: the name of their revision."""

SCHEDULER_NAME = "uellm-scheduler"
"""The scheduler that asks our extender; the default of `placement.schedulerName`."""

PLAN_ANNOTATION = "uellm.io/plan"
"""On pods: the plan for the scheduler extender, as JSON."""

EFFICIENCY_ANNOTATION = "uellm.io/efficiency"
"""On an LLMService: a calibration as JSON, the `efficiency` object that `uellm calibrate` writes."""

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
