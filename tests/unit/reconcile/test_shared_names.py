from __future__ import annotations

import pickle

from uellm.planner.result import Plan


def test_plans_that_come_from_worker_processes_or_statuses_have_the_names_of_nodes_in_common(make):
    sent = make.plan(nodes=("node-a", "node-b"))
    plans = [pickle.loads(pickle.dumps(sent)).with_shared_names() for _ in range(2)]
    plans.append(Plan.from_dict({**sent.to_dict(), "nodes": ["".join(("node", "-a")), "".join(("node", "-b"))]}))
    for plan in plans:
        assert plan == sent
        assert all(one is other for one, other in zip(plan.nodes, plans[0].nodes, strict=True))
