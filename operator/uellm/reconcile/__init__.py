"""Brings LLMServices to what their specs ask for: observe, plan, decide, apply.

observe    the state: a service, its children, its pods and their reports, from a cache of the cluster
planning/  the plan: asks the planner in a worker process, one service at a time, with a ledger of promised GPUs
pods/      what pods report: readiness, placement, measurements
status/    what the state means: conditions and status (pure)
children/  the desired objects, one kind a file (pure; nothing here plans)
apply      the only writer
drift      whether an object in the cluster still is what was applied
"""
