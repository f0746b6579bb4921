"""Planning of all services together, each against what was promised to the others.

A plan is entered into the ledger when it is chosen, before it is written anywhere, so the next service already counts
with it. Several searches may run at a time. Where another one has taken the room meanwhile, the search is repeated: the
same GPUs are never promised twice (`turns` decides who may search).

A service is planned again when its spec changed, when the hardware changed, when a node offers more than before, or
when a replica of it finds no place. While all its replicas have nodes, lost hardware calls for no new plan. A pass for
any other reason keeps the last choice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from uellm.errors import PlanError, ReloadError
from uellm.hardware import DRA
from uellm.models import Architecture
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.cache import Cache
from uellm.reconcile.engine_image import STOCK_ENGINE_IMAGE
from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.answer import PlanningQuestion
from uellm.reconcile.planning.choose import Choice
from uellm.reconcile.planning.deferral import Deferral
from uellm.reconcile.planning.edits import Edits
from uellm.reconcile.planning.improve import may_improve
from uellm.reconcile.planning.promises import Promises
from uellm.reconcile.planning.records import IMPROVE_EVERY_S, LastPass, Planned, Rendering, Standing
from uellm.reconcile.planning.request import architecture_of, check_environment
from uellm.reconcile.planning.stranded import all_placed, homes, is_stranded
from uellm.reconcile.planning.turns import Turns
from uellm.reconcile.planning.unchanged import Inputs, inputs_of
from uellm.reconcile.planning.worker import PlanningWorker
from uellm.reconcile.rendered_plan import RenderedPlan
from uellm.reconcile.revisions import kept_revision
from uellm.reconcile.step_times.steps import correction
from uellm.reconcile.step_times.store import StepStore

Observe = Callable[[str, float], None]
"""Called after every search with its outcome (`Planned`, or the reason of the failure) and its seconds."""


def unobserved(outcome: str, seconds: float) -> None:
    """Nobody counts searches."""


class Planning:
    """Plans of all services. Call `promises.restore` before the first `plan`."""

    def __init__(
        self,
        cache: Cache,
        worker: PlanningWorker,
        *,
        count: Observe = unobserved,
        workers: int = 1,
        on_planned: Callable[[Key], None] | None = None,
        steps: StepStore | None = None,
        engine_image: str = STOCK_ENGINE_IMAGE,
    ) -> None:
        """`count` is called after every search; `workers`: searches at a time; `steps`: step times measured before;
        `engine_image`: that of services which name none.

        With `on_planned` a pass waits for no search: it is called at the end of one.
        """
        self._cache = cache
        self._worker = worker
        self._count = count
        self._steps = steps or StepStore()
        self.promises = Promises(cache, self._steps.corrections, engine_image)
        self._standing: dict[Key, Standing] = {}
        self._renderings: dict[Key, Rendering] = {}
        self._known: dict[Key, LastPass] = {}
        self._edits = Edits()
        self._on_planned = on_planned
        self._deferral = Deferral(on_planned)
        self._searches: dict[Key, asyncio.Task[None]] = {}
        self._asked: dict[Key, Observed] = {}
        """The services that wait for their turn, as the last pass observed them."""
        self._errors: dict[Key, Exception] = {}
        """Of searches that ended without an answer; the next pass raises them."""
        self._turns = Turns(workers, on_waiting=self._deferral.waiting)

    @property
    def in_line(self) -> int:
        """Services that wait for the planner."""
        return self._turns.waiting

    async def plan(self, observed: Observed, now: datetime) -> Planned | None:
        """The plan to use for a service; None while it is being planned, after which `on_planned` is called.

        Where nothing has changed since the last pass, it costs next to nothing.
        """
        if (error := self._errors.pop(observed.key, None)) is not None:
            raise error
        self._edits.look(observed)
        standing = self._standing.get(observed.key)
        self.promises.runs(observed, None if standing is None else standing.choice.plan)
        if self.promises.refuses(observed, now):
            self._others_may_fit()
        known = self._known.get(observed.key)
        if known is not None and self._is_unchanged(known, observed, now):
            choice, rendered = known.planned
            if choice.plan is not None and kept_revision(observed, choice.plan) is not None:
                return known.planned if rendered is None else self._frozen(observed.key, known)
            if choice.plan is None or rendered is not None:
                return known.planned
        return await self._plan(observed, now)

    def _others_may_fit(self) -> None:
        """No event tells those that wait of GPUs that are no longer promised."""
        if self._on_planned is not None:
            for key in self.waiting():
                self._on_planned(key)

    def _frozen(self, key: Key, known: LastPass) -> Planned:
        """The revision has what was rendered, so that nobody needs it any more."""
        self._renderings.pop(key, None)
        self._known[key] = known._replace(planned=Planned(known.planned.choice, None))
        return self._known[key].planned

    def _is_unchanged(self, known: LastPass, observed: Observed, now: datetime) -> bool:
        standing = self._standing.get(observed.key)
        if standing is not None and standing.may_be_improved_now(observed, now):
            return False
        recent = known.planned.choice.plan is None or (now - known.since).total_seconds() < IMPROVE_EVERY_S
        return recent and known.inputs == self._inputs(observed, known.planned.choice.plan, now, self.promises.version)

    def _inputs(self, observed: Observed, chosen: Plan | None, now: datetime, promised: int) -> Inputs:
        """`promised`: the version of the promises that the planner was told of."""
        standing = self._standing.get(observed.key)
        return inputs_of(
            observed,
            chosen,
            stranded=is_stranded(observed, now),
            lost_place=standing is not None and standing.placed and not all_placed(observed),
            # What came after that is for the next pass: whether the planner was told of it is not known.
            hardware=observed.hardware_version,
            room=(observed.room_version, promised),
        )

    def _remember(self, observed: Observed, planned: Planned, now: datetime, promised: int) -> Planned:
        self._known[observed.key] = LastPass(self._inputs(observed, planned.choice.plan, now, promised), planned, now)
        return planned

    async def _plan(self, observed: Observed, now: datetime) -> Planned | None:
        if observed.service is None:
            return self._failed(observed, Obstacle("InvalidSpec", observed.invalid))
        try:
            check_environment(observed.service)
            if observed.model.obstacle is not None:
                return self._without_facts(observed, observed.model.obstacle)
            if observed.service.spec.placement.allocation == DRA and (missing := observed.dra.obstacle()) is not None:
                return self._without_facts(observed, missing)
            architecture = self._architecture(observed)
        except ReloadError as error:
            return self._failed(observed, Obstacle(error.reason, str(error)))
        except PlanError as error:
            # Where the spec is as it was, an earlier release accepted it, and its pods may run.
            return self._without_facts(observed, Obstacle(error.reason, str(error)))
        if self._on_planned is None:
            return await self._plan_now(observed, architecture, now)
        if observed.key in self._standing or observed.suspended:
            promised, request = self.promises.version, self.promises.request(observed, architecture)
            if (choice := self._earlier_choice(observed, request, now)) is not None:
                return await self._finished(observed, request, choice, now, promised)
        self._asked[observed.key] = observed
        if observed.key not in self._searches:
            self._searches[observed.key] = asyncio.create_task(self._plan_later(observed.key, now))
        return self._meanwhile(observed)

    def _architecture(self, observed: Observed) -> Architecture:
        """Raises PlanError, also for what the stock engine does not start with, where it is to start with this spec.

        The engines that run may be of an earlier release.
        """
        assert observed.service is not None
        starts = observed.spec_changed and not self.promises.has_own_image(observed.service)
        return architecture_of(observed.service, observed.facts, served=starts)

    def _without_facts(self, observed: Observed, obstacle: Obstacle) -> Planned:
        """The model, or a way to claim GPUs, is not known, or not any more. Pods that run stay with their GPUs."""
        plan = observed.incumbent
        if plan is not None and kept_revision(observed, plan) is not None:
            return Planned(Choice(plan), None)
        if plan is not None and observed.deployment is not None and observed.model.is_awaited:
            return Planned(Choice(None, obstacle), None)
        return self._failed(observed, obstacle)

    async def _plan_now(self, observed: Observed, architecture: Architecture, now: datetime) -> Planned:
        promised, request = self.promises.version, self.promises.request(observed, architecture)
        choice = self._earlier_choice(observed, request, now)
        if choice is None:
            async with self._turns.turn(observed.key):
                promised, request, choice = await self._search(observed, architecture, now)
        return await self._finished(observed, request, choice, now, promised)

    async def _finished(
        self, observed: Observed, request: PlanRequest, choice: Choice, now: datetime, promised: int
    ) -> Planned:
        if choice.plan is not None and kept_revision(observed, choice.plan) is not None:
            self._renderings.pop(observed.key, None)
            return self._remember(observed, Planned(choice, None), now, promised)
        planned = Planned(choice, await self._rendered(observed.key, choice.plan, request))
        return self._remember(observed, planned, now, promised)

    async def _plan_later(self, key: Key, asked: datetime) -> None:
        """Plan a service as it is when its turn has come, then call `on_planned`."""
        start_s = time.monotonic()
        try:
            async with self._turns.turn(key):
                observed = self._asked.pop(key, None)
                if observed is None or observed.service is None:
                    return
                now = asked + timedelta(seconds=time.monotonic() - start_s)
                architecture = self._architecture(observed)
                promised, request, choice = await self._search(observed, architecture, now)
            # After the turn, because rendering may need one of its own.
            await self._finished(observed, request, choice, now, promised)
            self._deferral.planned(key)
        except PlanError:
            pass  # the spec changed meanwhile, and the next pass reports it
        except Exception as error:
            self._errors[key] = error
        finally:
            # A service of the same name may have been made meanwhile, with a search of its own.
            if self._searches.get(key) is asyncio.current_task():
                del self._searches[key]
                self._asked.pop(key, None)
            if self._on_planned is not None:
                self._on_planned(key)

    def _meanwhile(self, observed: Observed) -> Planned | None:
        """The plan in force, for what can be done by it while another one is sought, such as more replicas."""
        plan, rendering = observed.incumbent, self._renderings.get(observed.key)
        if plan is None or observed.spec_changed:
            return None
        if kept_revision(observed, plan) is not None:
            return Planned(Choice(plan), None)
        return Planned(Choice(plan), rendering.rendered) if rendering is not None and rendering.plan == plan else None

    def measured(self, observed: Observed, now: datetime) -> None:
        """Keep what the service's pods measured, for plans that are made later. It calls for no plan."""
        if observed.step_times and (found := correction(observed)) is not None:
            self._steps.put(found, now)

    def is_of_earlier_spec(self, key: Key) -> bool:
        """Whether what the plan is predicted to do is of an earlier spec: none could be made to judge the change by."""
        return self._edits.waits(key)

    def pods_deferred_s(self, observed: Observed, now: datetime) -> float | None:
        """Seconds for which the pods are held back at most, while other services wait for a plan; None: not at all.

        `on_planned` is called as soon as no service waits any more.
        """
        standing = self._standing.get(observed.key)
        planned = None if standing is None else standing.since
        return self._deferral.remaining_s(observed, planned, now)

    def written(self, key: Key) -> None:
        """The plan of a service, or why it has none, is written down."""
        self._deferral.written(key)

    def withdraw(self, key: Key) -> None:
        """The plan cannot be carried out: its GPUs are no longer promised."""
        self.promises.withdraw(key)
        self._standing.pop(key, None)
        self._known.pop(key, None)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self.withdraw(key)
        self._renderings.pop(key, None)
        self._edits.forget(key)
        self._turns.forget(key)
        self._deferral.forget(key)
        self._asked.pop(key, None)
        self._errors.pop(key, None)
        self.promises.forget(key)
        if (search := self._searches.pop(key, None)) is not None:
            search.cancel()  # its answer must not promise GPUs to a service that is gone

    def waiting(self) -> list[Key]:
        """Services that may get a plan, or one on nodes that are there, when others leave."""
        chosen = ((key, standing.choice.plan) for key, standing in self._standing.items())
        return [key for key, plan in chosen if plan is None or plan.node_classes]

    def _earlier_choice(self, observed: Observed, request: PlanRequest, now: datetime) -> Choice | None:
        """The choice that needs no planner; None where the planner has to be asked."""
        if observed.suspended and observed.incumbent is not None and not observed.spec_changed:
            # It needs no GPUs now. Whether there are some is asked when it is resumed.
            self._standing.pop(observed.key, None)
            return Choice(observed.incumbent)
        standing = self._standing.get(observed.key)
        if standing is None or self.promises.may_take(observed, standing.choice):
            return None
        return standing.choice if standing.still_holds(observed, request, now) else None

    async def _search(
        self, observed: Observed, architecture: Architecture, now: datetime
    ) -> tuple[int, PlanRequest, Choice]:
        """Ask the planner, in a turn, until its answer can be entered. The number is the version of the promises."""
        while True:
            version, request = self.promises.version, self.promises.request(observed, architecture)
            choice = await self._ask(observed, request, now, version)
            if choice is not None:
                return version, request, choice

    async def _ask(self, observed: Observed, request: PlanRequest, now: datetime, version: int) -> Choice | None:
        """Ask the planner and enter its answer; None where it has to be asked again.

        That is where another service has taken the room meanwhile, and where the pods may displace others.

        `version`: of the promises, when the request was made.
        """
        incumbent, stranded = observed.incumbent, is_stranded(observed, now)
        placed = incumbent is not None and all_placed(observed)
        hardware = None if incumbent is None or placed else self.promises.hardware(observed)
        improve = may_improve(observed, now)
        question = PlanningQuestion(
            request,
            incumbent,
            hardware,
            observed.spec_changed,
            stranded,
            improve,
            self._edits.is_open(observed.key),
            unprofiled=any(self._cache.profiled_node(name) is None for name in homes(observed)),
        )
        start_s = time.monotonic()
        answer = await self._worker.answer(question)
        failure = answer.choice.failure
        seconds = time.monotonic() - start_s
        self._count(failure.reason if failure else "Planned", seconds)
        self._turns.record(observed.key, seconds)
        choice, rendered = answer.choice, answer.rendered
        if choice.plan is not None:
            choice = choice._replace(plan=choice.plan.with_shared_names())
        if self.promises.may_take(observed, choice):
            self.promises.take(observed.key)
            return None
        if version != self.promises.version and self.promises.room_is_gone(observed, request, choice.plan):
            return None
        self._edits.searched(observed, choice.plan, found=answer.found)
        standing = Standing(observed.spec_digest, request, stranded, improve, placed, choice, now)
        self._enter(observed, standing)
        if choice.plan is not None and rendered is not None:
            self._renderings[observed.key] = Rendering(choice.plan, request, rendered)
        return choice

    async def _rendered(self, key: Key, plan: Plan | None, request: PlanRequest) -> RenderedPlan | None:
        """The plan for its pods: as it was rendered before, or rendered anew for other facts."""
        if plan is None:
            self._renderings.pop(key, None)
            return None
        rendering = self._renderings.get(key)
        if rendering is None or not rendering.is_of(plan, request):
            async with self._turns.turn(key):
                rendering = Rendering(plan, request, await self._worker.render(plan, request))
            self._renderings[key] = rendering
        return rendering.rendered

    def _enter(self, observed: Observed, standing: Standing) -> None:
        self._standing[observed.key] = standing
        if standing.choice.plan is not None:
            self.promises.enter(observed.key, standing.choice.plan)
        else:
            self.promises.end(observed.key, refused=observed.spec_changed)

    def _failed(self, observed: Observed, failure: Obstacle) -> Planned:
        self._standing.pop(observed.key, None)
        self.promises.end(observed.key, refused=observed.spec_changed)
        return Planned(Choice(None, failure), None)
