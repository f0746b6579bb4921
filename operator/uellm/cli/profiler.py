"""`uellm profiler --node NAME`: the DaemonSet's process; keeps the node's GPUNodeProfile true until SIGTERM.

What its pod needs:

    args      profiler --node $(NODE_NAME) [--simulate /etc/uellm/simulate] [--interval 10]
              `--simulate` takes a directory of `<nodeName>.yaml` files (the ConfigMap) or one file. A node that the
              directory does not name is measured by NVML; where there is no driver either, the process says so once
              and looks again every interval: it neither crash-loops nor writes a profile for a node without GPUs.
    env       NODE_NAME from fieldRef spec.nodeName. On real GPU nodes NVIDIA_VISIBLE_DEVICES=all and
              NVIDIA_DRIVER_CAPABILITIES=utility (compute,utility where the image carries torch); MIG nodes also
              NVIDIA_MIG_MONITOR_DEVICES=all. No `nvidia.com/gpu` request: it looks at all, it takes none.
    pod       runtimeClassName nvidia on real GPU nodes (a value of the chart; none in the dev cluster), tolerations for
              GPU taints, terminationGracePeriodSeconds 10.
    mounts    hostPath directory /var/lib/kubelet/pod-resources at the same path, readOnly (the directory, not the
              socket: a restarted kubelet makes a new one); the ConfigMap at /etc/uellm/simulate; no writable path.
    security  runAsUser 0 (the kubelet's socket belongs to root), runAsNonRoot false, drop ALL capabilities,
              allowPrivilegeEscalation false, readOnlyRootFilesystem true, RuntimeDefault; not privileged, no hostNetwork.
    RBAC      uellm.io gpunodeprofiles: get, list, watch, create, patch; gpunodeprofiles/status: get, patch;
              core nodes: get; core pods: list (field selector spec.nodeName, for the pods' UIDs).
    probes    none: a process that cannot go on ends with status 1.
"""
