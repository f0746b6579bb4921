"""Observes the GPUs of one node and who holds them, and writes the node's GPUNodeProfile.

    sample.py        an observation of a node's GPUs, and the interface of the two sources
    nvml.py          source: the driver, through NVML; links.py: how its GPUs are connected
    simulated.py     source: a description in a file
    measure.py       measures GPUs with torch, in its own process; bench.py: decides what to measure and when
    podresources.py  which pod has which device, from the kubelet; allocations.py: by UID of the pod
    status.py        sample + allocations + measurements -> GPUNodeProfile.status; pure
    store.py         the profile in the cluster
    keeper.py        the loops that keep it true
    deviceplugin.py  a described node's GPUs, offered to the kubelet
    table.py         the profile as a table
    kubelet/         the kubelet's two gRPC APIs

Only this package imports pynvml and torch, and both only when they are needed.
"""
