"""Observes the GPUs of one node and who holds them, and writes the node's GPUNodeProfile.

    sample.py        an observation of a node's GPUs, and the interface of the two sources
    nvml.py          source: the driver, through NVML; links.py: how its GPUs are connected; gpu_state.py: their state;
                     gpu_memory.py: their memory
    simulated.py     source: a description in a file
    measured.py      what the measuring pods wrote, as far as it can be believed
    podresources.py  which pod has which device, from the kubelet; device_names.py: by UUID of the device;
                     allocations.py: by UID of the pod
    offered.py       which devices the kubelet offers, and to how many pods at once
    outside_memory.py  memory in use that no pod explains
    health.py        which devices are quarantined, and why; events.py: Events about it
    status.py        sample + allocations + measurements -> GPUNodeProfile.status; pure
    store.py         the profile in the cluster
    keeper.py        the loops that keep it true
    deviceplugin.py  a described node's GPUs, offered to the kubelet
    dra/             the same, offered to resource claims
    table.py         the profile as a table
    kubelet/         the kubelet's gRPC APIs

Only this package imports pynvml, and only when it is needed.
"""
