"""Golden plans: what the planner made of some hundred generated services, kept to compare later code with.

services.py   the services and the nodes they meet, by seed
outputs.py    plan, pod annotation, plan.json and manifests of one service; the only importer of the planner
compare.py    what counts as the same: see the lists of masked and changed fields
plans.json.xz the record; `make golden` writes it again from the code as it is
"""
