"""Measures the network between GPU nodes, each profiler with a few others, over TCP.

wire      what two profilers say to each other, and its limits
gate      one measurement at a time on a node
sink      the end that is asked
exchange  the end that asks, and its figures
peers     who asks whom. Pure
keeping   the loop that asks, and what is known
"""
