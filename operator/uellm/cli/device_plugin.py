"""`uellm device-plugin --simulate PATH --node NAME`: a described node's GPUs, through the kubelet's own device-plugin API.

What its pod needs (its own DaemonSet, off by default: it is for nodes whose GPUs are described, not real):

    args      device-plugin --simulate /etc/uellm/simulate --node $(NODE_NAME)
              [--plugin-dir /var/lib/kubelet/device-plugins]
              A node that the directory does not name advertises nothing; the process waits for its file to appear.
    env       NODE_NAME from fieldRef spec.nodeName.
    mounts    hostPath directory /var/lib/kubelet/device-plugins at the same path, read-write; the ConfigMap of the
              profiler at /etc/uellm/simulate, readOnly.
    security  runAsUser 0 (the directory belongs to root), runAsNonRoot false, drop ALL capabilities,
              allowPrivilegeEscalation false, readOnlyRootFilesystem true, RuntimeDefault.
    RBAC      none; automountServiceAccountToken false: it speaks with the kubelet alone.
    update    terminationGracePeriodSeconds 10; RollingUpdate with maxSurge 0 (one plugin a node at a time).

Devices keep running in their pods while the plugin is away; the kubelet then counts the resource as zero for new pods.
"""
