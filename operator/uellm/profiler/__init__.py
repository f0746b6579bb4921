"""What the GPUs of one node are and who has them: observed here, written as the node's GPUNodeProfile.

    sample.py        what a source says about a node, and the two sources' common interface
    nvml.py          source: the driver, by NVML; links.py: how its GPUs are connected
    simulated.py     source: a description in a file
    measure.py       what a GPU really does, by torch, in a process of its own; bench.py: when, and which
    podresources.py  which pod has which device, by the kubelet; allocations.py: by UID of the pod
    status.py        sample + allocations + measurements -> GPUNodeProfile.status; pure
    store.py         the profile in the cluster
    keeper.py        the loops that keep it true
    deviceplugin.py  a described node's GPUs, offered to the kubelet
    table.py         the profile for a person
    kubelet/         the kubelet's two gRPC APIs

Only this package imports pynvml and torch, and both only when they are asked.
"""
