"""For any order of events, the scheduler loses no request and hands none out twice."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from uellm.sidecar.scheduling import (
    POLICIES,
    EngineState,
    Late,
    Lengths,
    Options,
    QueueFull,
    Scheduler,
    Shows,
    State,
    Targets,
    Ticket,
)

CLASSES = (
    Targets("fast", priority=10, ttft_s=1.0),
    Targets("slow", e2e_s=60.0),
    Targets("none"),
    Targets("strict", ttft_s=2.0, reject_late=True),
)


class SchedulerMachine(RuleBasedStateMachine):
    """The scheduler beside a model that consists of two plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Scheduler()
        self.now_s = 0.0
        self.ready = False
        self.queued: list[Ticket] = []
        self.running: list[Ticket] = []

    @property
    def bounded(self):
        return POLICIES[self.core.options.policy].bounded

    @property
    def counted(self):
        """Those in flight, without a prompt that cannot run."""
        return len(self.running) - self.core._detours.trying

    @rule(
        slo_class=st.sampled_from(CLASSES),
        prompt=st.integers(0, 5000),
        p50=st.integers(1, 2000),
        tenant=st.sampled_from("ab"),
        shows=st.sampled_from(Shows),
    )
    def submit(self, slo_class, prompt, p50, tenant, shows):
        ticket = Ticket(
            slo_class,
            self.now_s,
            prompt,
            Lengths(p50, 2 * p50),
            tenant=tenant,
            longest_prompt_tokens=prompt,
            shows=shows,
        )
        try:
            self.core.submit(ticket, self.now_s)
        except QueueFull:
            assert len(self.queued) >= self.core.options.max_queued
        else:
            self.queued.append(ticket)

    @rule()
    def hand_out(self):
        for ticket in self.core.dispatchable(self.now_s):
            assert self.ready
            cannot_run = ticket.longest_prompt_tokens > 0 and not ticket.uncached_tokens
            assert cannot_run or self.counted < self.core.options.max_in_flight or not self.bounded
            self.queued.remove(ticket)
            self.running.append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), new=st.integers(1, 50))
    def tokens_come(self, data, new):
        ticket = data.draw(st.sampled_from(self.running))
        if ticket.first_token_s is None:
            self.core.on_first_token(ticket, self.now_s)
        self.core.on_tokens(ticket, ticket.tokens + new, self.now_s)

    @precondition(lambda self: self.queued or self.running)
    @rule(data=st.data(), aborted=st.booleans())
    def end(self, data, aborted):
        ticket = data.draw(st.sampled_from(self.queued + self.running))
        (self.core.on_abort if aborted else self.core.on_finish)(ticket, self.now_s)
        (self.queued if ticket in self.queued else self.running).remove(ticket)

    @precondition(lambda self: any(ticket.first_token_s is None for ticket in self.running))
    @rule(data=st.data())
    def put_back(self, data):
        ticket = data.draw(st.sampled_from([ticket for ticket in self.running if ticket.first_token_s is None]))
        self.core.submit(ticket, self.now_s)
        self.running.remove(ticket)
        self.queued.append(ticket)

    @precondition(lambda self: self.queued or self.running)
    @rule(data=st.data(), tokens=st.integers(1, 5000))
    def predict_anew(self, data, tokens):
        ticket = data.draw(st.sampled_from(self.queued + self.running))
        in_time = self.core.on_lengths(ticket, Lengths(tokens, 2 * tokens), self.now_s)
        assert in_time == (ticket in self.queued)

    @rule(seconds=st.floats(min_value=0.0, max_value=90.0))
    def time_passes(self, seconds):
        self.now_s += seconds
        due_s = self.core.next_event_s(self.now_s)
        late = self.core.expire(self.now_s)
        by_clock = [ticket for ticket, reason in late if reason is not Late.SHED]
        assert not by_clock or (due_s is not None and due_s <= self.now_s)
        for ticket, _ in late:
            self.queued.remove(ticket)
        assert not [t for t in self.queued if t.reject_s is not None and t.reject_s <= self.now_s]

    @rule(
        ready=st.booleans(),
        max_model_len=st.sampled_from((None, 2000, 10_000)),
        used=st.sampled_from((None, 0.0, 0.01, 0.3, 1.0)),
        running=st.sampled_from((None, 0, 1, 3, 100)),
    )
    def engine(self, ready, max_model_len, used, running):
        self.ready = ready
        state = EngineState(
            ready,
            running=running,
            kv_used_share=used,
            kv_tokens=20_000,
            max_model_len=max_model_len,
            max_num_batched_tokens=512,
        )
        self.core.on_engine_state(state, self.now_s)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(1, 5000))
    def the_engine_counts_a_prompt(self, data, tokens):
        self.core.on_prompt_tokens(data.draw(st.sampled_from(self.running)), tokens)

    @rule(policy=st.sampled_from(sorted(POLICIES)), in_flight=st.integers(1, 4), queued=st.integers(1, 6))
    def reconfigure(self, policy, in_flight, queued):
        self.core.reconfigure(Options(policy, max_in_flight=in_flight, max_queued=queued), self.now_s)

    @invariant()
    def counts_agree(self):
        assert (self.core.queued, self.core.in_flight) == (len(self.queued), len(self.running))
        assert sum(self.core.queued_by_class().values()) == len(self.queued)
        assert all(ticket.state is State.QUEUED for ticket in self.queued)
        assert all(ticket.state is State.RUNNING for ticket in self.running)
        assert self.core.failure is None

    @invariant()
    def the_view_of_the_engine_adds_up(self):
        view = self.core._view
        filling = [ticket for ticket in self.running if not ticket.filled]
        decoding = [ticket for ticket in self.running if ticket.filled]
        assert all(ticket.shows is Shows.END or ticket.first_token_s is not None for ticket in decoding)
        assert view.unseen.in_flight == sum(ticket.shows is Shows.END for ticket in self.running)
        assert view.unfilled_tokens == sum(ticket.uncached_tokens for ticket in filling)
        assert view.kv_tokens == sum(ticket.prompt_tokens + ticket.tokens for ticket in decoding)
        assert view.decoding == len(decoding)
        # Predictions are cut where answers turned out far shorter.
        left = view.length_share * sum(ticket.remaining_tokens for ticket in self.running)
        held = sum(ticket.tokens + ticket.prompt_tokens for ticket in self.running)
        assert left + held <= view.most_kv_tokens + 1e-6
        assert self.core.failure is None


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase
