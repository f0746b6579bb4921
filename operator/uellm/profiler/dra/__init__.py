"""A DRA driver for a described node's GPUs. It speaks the interface of NVIDIA's driver, and its GPUs are simulated.

    devices.py  the description as devices of a ResourceSlice; pure
    claims.py   the claims that are prepared on this node: CDI files
    slice.py    the node's ResourceSlice in the cluster
    driver.py   answers the kubelet
    server.py   registers at the kubelet, and keeps everything current

The names of driver, DeviceClass, devices, attributes and CDI files are those of github.com/NVIDIA/k8s-dra-driver-gpu.
Three things differ. `brand` is `Simulated`. A container gets NVIDIA_VISIBLE_DEVICES with the UUIDs in the order of the
claim's allocation, and the facts of its GPUs, because no driver could tell it. And it gets all devices of a claim, also
where it asks for one request of it.
"""
