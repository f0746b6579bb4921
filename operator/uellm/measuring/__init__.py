"""Measures the GPUs of a node, in the engine's image: a zipapp of its own, `measuring.pyz`.

    figures      the micro-benchmarks of a device and of a link, with torch
    all_reduce   the one of a group: a process for each device
    device_list  which devices the container has, and under which driver, power limit and clocks, by nvidia-smi
    work         what is left to measure. Pure
    document     the result, as it is written to a directory of the node. Pure
    session      carries the work out, and writes the document after each figure
    store        the document as a file, replaced as a whole
    __main__     the command; its first process never touches a GPU, so that it ends at once when it is told to
    build        writes the zipapp

The operator makes a pod that runs it, the profiler reads the document. It needs python3 and torch, nothing else.
"""
