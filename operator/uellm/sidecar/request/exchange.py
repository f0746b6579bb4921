"""A scheduled request, from its place in the queue to what is learned from its answer."""

from __future__ import annotations

from uellm.http import BLANK, EngineLost, Pairs, Reply, Upstream
from uellm.prompt import with_adapter
from uellm.proxying.faults import FaultGuard
from uellm.proxying.outcome import COMPLETED, RETRY_ENGINE_S, Refusal, RequestOutcome, of_engine_status, spread_s
from uellm.proxying.relay import Relay
from uellm.proxying.routes import end_to_end
from uellm.sidecar.prediction import LengthQuestion, Prediction
from uellm.sidecar.prediction.learned import Asked
from uellm.sidecar.prediction.service import Predictor
from uellm.sidecar.request.answer import AnswerTap
from uellm.sidecar.request.dispatch import Dispatcher
from uellm.sidecar.request.fast_path import FastPath
from uellm.sidecar.scheduling import Lengths, Shows, Ticket
from uellm.sidecar.telemetry.access_log import Record
from uellm.sidecar.wire.aggregate import Aggregator
from uellm.sidecar.wire.call import Call, Mode
from uellm.sidecar.wire.events import Usage
from uellm.sidecar.wire.read import Terms
from uellm.vllm_routes import RouteKind

# By names of their own: to read an enum's member costs as much as a call.
_POOLING, _AS_IS, _STRIPS = RouteKind.POOLING, Mode.AS_IS, Mode.STREAM_STRIP_USAGE
_TOKENS, _END = Shows.TOKENS, Shows.END

_WHOLE: Pairs = ((b"Content-Type", b"application/json"),)


class Exchange:
    """One scheduled request. The caller always calls `end`."""

    def __init__(
        self, call: Call, record: Record, dispatcher: Dispatcher, lengths: Predictor | None, terms: Terms
    ) -> None:
        self.call = call
        self._record = record
        self._dispatcher = dispatcher
        self._lengths = lengths
        self._terms = terms
        self._answer: AnswerTap | None = None
        self._usage: Usage | None = None
        self.priority = 0
        """vLLM's priority, where the lower goes first: the deadline in milliseconds. Known from its turn on."""
        self._prompt_counted = False
        """The engine has told the length of the prompt."""
        self._faults = dispatcher.faults
        self._loop = dispatcher.loop
        self._prediction: Prediction | None = None
        found: Lengths | None = None
        # `try`, because a guard costs three calls, and every request has all of these.
        try:
            self._prediction, found = self._predict()
        except Exception as error:
            self._faults.count("predictor", error, record.id)
        record.predicted_tokens = None if found is None else found.p50
        record.sequences = call.sequences
        record.estimated_prompt_tokens = call.prompt_tokens
        shows, prefix = _shows(call), call.prompt.prefix
        record.blind = shows is _END
        record.in_background = call.background and call.mode is _AS_IS
        self._ticket = Ticket(
            call.targets,
            # Its turn goes by when it came here: a wait for a first replica makes no request hopeless, nor the first.
            record.arrival_s + record.waited_s,
            prompt_tokens=call.prompt_tokens,
            lengths=found,
            max_tokens=call.max_tokens,
            tenant=call.tenant,
            prefix=(_with_adapter(prefix, record.adapter) if record.adapter else prefix) or None,
            sequences=call.sequences,
            body_bytes=len(call.body),
            may_batch=call.may_batch,
            each_step=call.each_step,
            longest_prompt_tokens=_longest(call),
            shows=shows,
        )
        self._asked: Asked | None = None
        if lengths is not None and self._prediction is not None:
            try:
                self._asked = lengths.ask(self._prediction, self._on_better_prediction)
            except Exception as error:
                self._faults.count("predictor", error, record.id)

    async def turn(self) -> bytes:
        """Wait for the request's turn. Returns the body to send. Raises Refusal."""
        record, ticket = self._record, self._ticket
        record.queue_s = None  # set by an earlier turn in which it did not reach the engine
        await self._dispatcher.turn(ticket)
        record.queue_s = self._loop.time() - record.arrival_s - record.waited_s
        self.priority = round(ticket.deadline_s * 1e3)
        return self.call.upstream_body(self.priority, batched=ticket.batched)

    async def answer(self, reply: Reply, upstream: Upstream, own: Pairs, *, stall_s: float) -> None:
        """Send the client its answer. Sets the record's outcome. Raises Refusal only before anything was sent."""
        self.call.body = b""
        record = self._record
        guard = FaultGuard(self._faults, "answer", record.id)
        answer = self._answer = AnswerTap(
            self.call, upstream, self._terms.shapes, self._on_tokens, guard, batched=self._ticket.batched
        )
        record.blind &= not upstream.streams_events
        whole = answer.whole
        answer.fast_path = FastPath(
            reply,
            answer.counter,
            self._dispatcher,
            self._ticket,
            strips=whole is not None or self.call.mode is _STRIPS,
            write=None if whole is None else whole.take_chunk,
        )
        if whole is not None:
            await self._send_whole(whole, answer, reply, upstream, own)
        else:
            await Relay(reply, upstream, record, stall_s=stall_s, tap=answer).run(own)
        if record.outcome is COMPLETED:
            try:
                answer.learn()
            except Exception as error:
                self._faults.count("answer", error, record.id)

    def end(self) -> None:
        """End the request and free its place. Raises nothing."""
        record = self._record
        answer = self._answer
        self._answer = None  # it refers back to us: break the cycle, so that both are freed at once
        if answer is None:
            self._dispatcher.abort(self._ticket)
            return
        try:
            self._count(answer)
        except Exception as error:
            self._faults.count("answer", error, record.id)
        if not record.failed_status and (record.outcome is COMPLETED or record.done):
            events = 0 if self._usage is None else answer.counter.tokens
            self._dispatcher.finish(self._ticket, record.output_tokens, events)
            try:
                self._learn(record.output_tokens)
            except Exception as error:
                self._faults.count("predictor", error, record.id)
        else:
            self._dispatcher.abort(self._ticket)

    def goes_on_as(self) -> str:
        """The id of a response that the engine works on although its answer here has ended; empty: it does not."""
        answer = self._answer
        if answer is None or answer.kept_as is None or self._record.failed_status:
            return ""
        streamed_whole = answer.streams and self._record.outcome is COMPLETED
        return "" if streamed_whole else answer.kept_as.found

    def end_later(self, usage: Usage | None) -> None:
        """End a request that went on, in place of `end`. `usage`: its tokens, if it completed. Raises nothing."""
        self._answer = None
        if usage is None:
            self._dispatcher.abort(self._ticket)
            return
        with self._faults.guard("answer", self._record.id):
            self._take_prompt_tokens(usage.prompt_tokens)
        self._dispatcher.finish(self._ticket, usage.output_tokens)
        with self._faults.guard("predictor", self._record.id):
            self._learn(usage.output_tokens)

    async def _send_whole(
        self, whole: Aggregator, answer: AnswerTap, reply: Reply, upstream: Upstream, own: Pairs
    ) -> None:
        record = self._record

        def take(piece: bytes) -> None:
            answer.piece(piece)
            answer.count(piece)
            if not upstream.complete:
                upstream.pass_chunks(answer.chunk_sink() if piece.endswith(BLANK) else None)

        try:
            await upstream.pipe(take)
            status, body = whole.answer()
            if whole.reasons:
                self._terms.shapes.give_up(self.call.kind)
        except EngineLost as error:
            record.outcome = RequestOutcome.ENGINE_LOST
            message = "the engine stopped before its answer was complete; send the request again"
            raise Refusal(RequestOutcome.ENGINE_LOST, message, retry_after_s=spread_s(RETRY_ENGINE_S)) from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            self._terms.shapes.give_up(self.call.kind)
            message = "the engine's answer could not be read; send the request again"
            raise Refusal(RequestOutcome.ENGINE_LOST, message, retry_after_s=spread_s(RETRY_ENGINE_S)) from error
        sized = (*_WHOLE, (b"Content-Length", b"%d" % len(body)), *own)
        reply.start(status, [*end_to_end(upstream.headers, sized), *sized], body_follows=True)
        reply.write(body)
        reply.finish()
        record.status, record.bytes_out = status, len(body)
        record.outcome = of_engine_status(status)

    def _on_tokens(self, tokens: int) -> None:
        record = self._record
        now_s = record.last_token_s = self._loop.time()
        if record.first_token_s is None:
            record.first_token_s = now_s
            self._dispatcher.first_token(self._ticket)
            if self._answer is not None and (usage := self._answer.counter.usage()) is not None:
                self._take_prompt_tokens(usage.prompt_tokens)
        if tokens > 1:
            self._dispatcher.token_updates.append((self._ticket, tokens, now_s))

    def _count(self, answer: AnswerTap) -> None:
        record = self._record
        record.failed_status = answer.failure.status
        if record.failed_status and record.outcome is COMPLETED:
            record.outcome = of_engine_status(record.failed_status)
        if (fast_path := answer.fast_path) is not None and fast_path.last_s is not None:
            last_s = record.last_token_s
            record.last_token_s = fast_path.last_s if last_s is None or last_s < fast_path.last_s else last_s
            if answer.whole is None:
                record.bytes_out += fast_path.passed_bytes
        if tokens := answer.counter.tokens:
            record.output_tokens = tokens
        if self.call.kind is _POOLING and record.outcome is COMPLETED:
            record.first_token_s = self._loop.time()
        self._usage = usage = answer.counter.usage()
        if usage is not None:
            record.prompt_tokens, record.output_tokens, _ = usage
            self._take_prompt_tokens(usage.prompt_tokens)

    def _take_prompt_tokens(self, tokens: int) -> None:
        """Take the engine's count, from the first event that has one."""
        if not self._prompt_counted and tokens > 0:
            self._prompt_counted = True
            self._terms.ratio.learn(self.call.prompt, tokens)
            self._dispatcher.count_prompt(self._ticket, tokens)

    def _predict(self) -> tuple[Prediction | None, Lengths | None]:
        call = self.call
        if self._lengths is None or call.kind is _POOLING:
            return None, None
        found, record = call.prompt, self._record
        template = with_adapter(found.template, record.adapter) if record.adapter else found.template
        question = LengthQuestion(record.route, call.tenant, template, call.prompt_tokens, found.text)
        prediction = self._lengths.predict(question, self._loop.time())
        return prediction, prediction.lengths(call.max_tokens)

    def _on_better_prediction(self, prediction: Prediction) -> None:
        with self._faults.guard("predictor", self._record.id):
            lengths = prediction.lengths(self.call.max_tokens)
            if self._dispatcher.update_lengths(self._ticket, lengths):
                self._record.predicted_tokens = lengths.p50

    def _learn(self, tokens: int | None) -> None:
        if self._prediction is None or self._lengths is None or not tokens:
            return
        each, most = round(tokens / self.call.sequences), self.call.max_tokens
        truncated = most is not None and each >= most
        self._lengths.observe(self._prediction, max(1, each), truncated=truncated, asked=self._asked)


def _shows(call: Call) -> Shows:
    """What its answer shows. A call that was not read may turn out to be a stream; its first token then shows."""
    if call.kind is _POOLING:
        return Shows.PROMPT
    return _END if call.mode is _AS_IS else _TOKENS


def _longest(call: Call) -> int:
    """Estimated tokens that the longest of its prompts has at least; 0 where the estimate says too little."""
    prompt = call.prompt
    text_alone = (prompt.characters or prompt.token_ids) and not prompt.media and not prompt.partial
    return call.prompt_tokens // prompt.prompts if text_alone else 0


def _with_adapter(numbers: tuple[int, ...], adapter: str) -> tuple[int, ...]:
    """Numbers that stand for a prompt's beginning, apart for each adapter: their answers and KV caches differ."""
    return tuple([with_adapter(number, adapter) for number in numbers])
