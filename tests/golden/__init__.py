"""Golden plans: the planner's results for several hundred generated services, stored to compare later code with.

services.py   the services and their nodes, by seed
outputs.py    plan, pod annotation, plan.json and manifests of one service; the only module that imports the planner
compare.py    the comparison: see the lists of masked and changed fields
plans.json.xz the record; `make golden` writes it with the current code
"""
