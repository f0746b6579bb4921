"""A cluster in the cache, with a planner that plans two GPUs on every node with room."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime

from helpers.models import SMALLEST_LLAMA
from uellm.kube.kinds import DEPLOYMENT, GPUNODEPROFILE, LLMSERVICE, POD
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key
from uellm.reconcile.observe import observe
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.answer import PlanningAnswer
from uellm.reconcile.planning.evaluate import Evaluation
from uellm.reconcile.planning.plan_status import plan_status
from uellm.reconcile.planning.planning import Planning

GPUS = 2


class PlanningWorld:
    """The cache, the planner and what it was asked. `make`: the builders of the reconcile tests."""

    def __init__(self, make):
        self.make = make
        self.cache = Cache()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.requests = []
        self.revisions_asked = []
        self.broken = None
        self.rendered = []
        self.renders_itself = True
        self.planning = Planning(self.cache, self, workers=2)
        self.revisions = {}
        self.version = 100
        self.gate = asyncio.Event()
        self.gate.set()
        self._changed = asyncio.Condition()

    async def answer(self, question):
        self.requests.append(question.request)
        async with self._changed:
            self._changed.notify_all()
        await asyncio.sleep(0)  # other tasks get a turn, as with a real worker
        await self.gate.wait()
        self.revisions_asked.append(question.revise)
        evaluation = self._evaluation(question.request, question.incumbent)
        choice = question.choice(evaluation)
        rendered = choice.plan and self.renders_itself and self._rendered(choice.plan, question.request)
        return PlanningAnswer(choice, rendered or None, found=evaluation.plan is not None)

    async def asked(self, times):
        """Wait until the planner was asked so often."""
        async with asyncio.timeout(5), self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= times)

    async def render(self, plan, request):
        self.rendered.append(plan)
        return self._rendered(plan, request)

    def _rendered(self, plan, request):
        facts = [offer.node.devices for offer in request.nodes if offer.node.name in plan.nodes]
        return ("rendered", plan, facts)

    def _evaluation(self, request, incumbent):
        nodes = tuple(o.node.name for o in request.nodes if len(o.free) - o.promised >= GPUS)
        broken = None if incumbent is None or set(incumbent.nodes) & set(nodes) else "no room"
        if not nodes:
            return Evaluation(None, Obstacle("NoFit", "no room"), broken, self.broken)
        return Evaluation(self.make.plan(nodes=nodes), None, broken, self.broken)

    def put(self, kind, obj):
        self.version += 1
        self.cache.put(kind, {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}})

    def node(self, name, *holders, **device):
        self.put(GPUNODEPROFILE, self.make.profile(name, holders, **device))

    def service(self, name, *, plan=None, **spec):
        document = self.make.service(name, **{"model": {"uri": "file:///m", "config": SMALLEST_LLAMA}, **spec})
        document["metadata"]["uid"] = f"uid-{name}"
        if plan is not None:
            document["status"] = {"plan": plan_status(plan)}
        self.put(LLMSERVICE, document)
        return document

    def deployed(self, name, *, replicas=1, inputs="", refused=False):
        """The Deployment of the service's current spec. `inputs`: digest of the plan that it carries out; `refused`:
        the API server lets it create no further pod."""
        observed = self.observed(name)
        deployment = self.make.deployment(replicas)
        if refused:
            deployment = self.make.refused(deployment, len(observed.pods))
        revision = self.make.revision(observed.spec_mark, inputs)
        self.revisions[name] = {revision.name: revision}
        metadata = {**deployment["metadata"], "name": f"{name}-engine"}
        owner = {"kind": "LLMService", "name": name, "uid": f"uid-{name}", "controller": True}
        self.put(DEPLOYMENT, {**deployment, "metadata": {**metadata, "ownerReferences": [owner]}})

    def pod(self, service, name, pod):
        metadata = {**pod["metadata"], "name": name, "uid": f"uid-{name}", "labels": {"uellm.io/service": service}}
        self.put(POD, {**pod, "metadata": metadata})

    def observed(self, name):
        found = observe(self.cache, Key("ns", name))
        return found and dataclasses.replace(found, revisions=self.revisions.get(name, {}))

    async def planned(self, name):
        return await self.planning.plan(self.observed(name), self.now)

    async def plan(self, name):
        return (await self.planned(name)).choice
