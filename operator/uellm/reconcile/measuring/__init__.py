"""Measures the GPUs of nodes by a pod a node, in the engine's image; any pod that wants GPUs preempts it.

settings     what the chart says about these pods
needs        what of a node is to be measured, by its profile. Pure
images       whether an image is on a node. Pure
pod          the manifest. Pure
steps        what to do next on a node. Pure
event        what a node's administrator is told. Pure

`controller/measuring.py` carries the steps out.
"""
