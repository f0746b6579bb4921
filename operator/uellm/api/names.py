"""Names in the cluster that several programs must agree on: group, labels, annotations.

Ports, paths and files of the pod are in `uellm.pod_interface`, the resource name of GPUs is in `uellm.hardware`: the
launcher imports these too.
"""

GROUP = "uellm.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
LLMSERVICE_KIND = "LLMService"

SERVICE_LABEL = "uellm.io/service"
"""On every child and pod: the name of its LLMService."""

REVISION_LABEL = "uellm.io/revision"
"""On pods and on the ConfigMaps that they are started from: the name of their revision."""

INSPECTION_LABEL = "uellm.io/inspection"
"""On inspection pods: the name of the LLMService whose model they look up. Their SERVICE_LABEL is empty."""

DOWNLOAD_LABEL = "uellm.io/download"
"""On download pods: the name of the LLMService whose model they copy. Their SERVICE_LABEL is empty."""

SOURCE_LABEL = "uellm.io/source"
"""On inspection and download pods: the digest of what they do."""

MEASURING_LABEL = "uellm.io/measuring"
"""On measuring pods: the digest of what they are to measure. Their SERVICE_LABEL is empty."""

MEASURE_ANNOTATION = "uellm.io/measure"
"""On a GPUNodeProfile: another value than before lets the node's GPUs be measured anew."""

SCHEDULER_NAME = "uellm-scheduler"
"""The scheduler that asks our extender; the default of `placement.schedulerName`."""

GROUP_LABEL = "leaderworkerset.sigs.k8s.io/name"
"""On the pods of groups: the name of their LeaderWorkerSet, which sets this label and the next two."""

GROUP_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/group-index"
"""Which of its groups a pod is of, from 0 on."""

WORKER_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/worker-index"
"""Which pod of its group a pod is, from 0 on; 0 is the leader."""

PLAN_ANNOTATION = "uellm.io/plan"
"""On pods: the plan for the scheduler extender, as JSON."""

EFFICIENCY_ANNOTATION = "uellm.io/efficiency"
"""On an LLMService: a calibration as JSON, the `efficiency` object that `uellm calibrate` writes."""

WANTED_AT_ANNOTATION = "uellm.io/wanted-at"
"""On an LLMService: when somebody last waited for a replica of it, in RFC 3339, UTC and whole seconds. Written by the
gateway while it holds requests; the autoscaler then wants at least one replica."""

WANTED_FOR_S = 60.0
"""How long that counts."""
