"""Brings LLMServices to what their specs want: observe, plan, apply.

observe    reads: the service, its children, pods and their reports, out of a cache of the cluster
planning   asks the planner, in a worker process, one service at a time, with a ledger of promises
decide     what all this means: conditions, status (pure)
children/  the objects that are wanted, one kind a file (pure)
apply      the only writer
"""
