"""A scheduled request: its call, its place in the queue, and what is learned when its answer is there."""

from __future__ import annotations

import asyncio

from uellm.http import EngineLost, Pairs, Reply, Upstream
from uellm.sidecar.outcome import Outcome, Refusal, of_engine_status
from uellm.sidecar.prediction import LengthQuestion, Prediction
from uellm.sidecar.prediction.service import Predictor
from uellm.sidecar.request.answer import Answer
from uellm.sidecar.request.dispatch import RETRY_ENGINE_S, Dispatcher
from uellm.sidecar.request.fast_path import Passage
from uellm.sidecar.request.relay import Relay
from uellm.sidecar.request.routes import end_to_end
from uellm.sidecar.scheduling import Ticket
from uellm.sidecar.telemetry.access_log import Record, tell
from uellm.sidecar.wire.call import Call
from uellm.sidecar.wire.read import Terms
from uellm.sidecar.wire.routes import RouteKind

_WHOLE: Pairs = ((b"Content-Type", b"application/json"),)


class Exchange:
    """From a request that was read to an answer that was counted. Whatever happens, `end` is called."""

    def __init__(
        self, call: Call, record: Record, dispatcher: Dispatcher, lengths: Predictor | None, terms: Terms
    ) -> None:
        self.call = call
        self._record = record
        self._dispatcher = dispatcher
        self._lengths = lengths
        self._terms = terms
        self._answer: Answer | None = None
        self._loop = asyncio.get_running_loop()
        self._prediction = self._predict()
        if self._prediction is not None:
            record.predicted_tokens = self._prediction.lengths(call.max_tokens).p50
        record.sequences = call.sequences
        self._ticket = Ticket(
            call.targets,
            record.arrival_s,
            prompt_tokens=call.prompt_tokens,
            lengths=None if self._prediction is None else self._prediction.lengths(call.max_tokens),
            max_tokens=call.max_tokens,
            tenant=call.tenant,
            prefix=call.prompt.prefix or None,
            sequences=call.sequences,
            body_bytes=call.body_bytes,
        )
        self._asked = None
        if lengths is not None and self._prediction is not None:
            self._asked = lengths.ask(self._prediction, self._better)

    async def turn(self) -> bytes:
        """Wait until it is to be sent; the body to send. Raises Refusal."""
        self._record.queue_s = None  # of a turn before, in which it did not reach the engine
        await self._dispatcher.turn(self._ticket)
        self._record.queue_s = self._loop.time() - self._record.arrival_s
        return self.call.upstream_body(self.priority)

    @property
    def priority(self) -> int:
        """For an engine that goes by it: the deadline in milliseconds, for the lower goes first."""
        return round(self._ticket.deadline_s * 1e3)

    async def answer(self, reply: Reply, upstream: Upstream, own: Pairs, *, stall_s: float) -> None:
        """Give the client its answer. The record gets its outcome. Raises Refusal while nothing of it was sent."""
        self.call.body = b""
        self._answer = Answer(self.call, upstream, self._terms.shapes, self._on_tokens)
        if self._answer.whole is not None:
            await self._put_together(self._answer, reply, upstream, own)
        else:
            self._answer.passage = Passage(reply, self._answer.counter, self._dispatcher, self._ticket)
            await Relay(reply, upstream, self._record, stall_s=stall_s, tap=self._answer).run(own)
        if self._record.outcome is Outcome.COMPLETED:
            self._answer.learn()

    def end(self) -> None:
        """It is over, one way or another."""
        completed = self._record.outcome is Outcome.COMPLETED or self._record.done
        answer, self._answer = self._answer, None  # it knows us: left so, only the collector could free the two
        if answer is None:
            self._dispatcher.abort(self._ticket)
            return
        self._count(answer)
        if completed:
            self._dispatcher.finish(self._ticket, self._record.output_tokens)
            self._learn(self._record.output_tokens)
        else:
            self._dispatcher.abort(self._ticket)

    async def _put_together(self, answer: Answer, reply: Reply, upstream: Upstream, own: Pairs) -> None:
        whole, record = answer.whole, self._record
        assert whole is not None

        def take(piece: bytes) -> None:
            answer.piece(piece)
            answer.count(piece)

        try:
            await upstream.pipe(take)
            status, body = whole.answer()
            if whole.reasons:
                self._terms.shapes.give_up(self.call.kind)
        except EngineLost as error:
            record.outcome = Outcome.ENGINE_LOST
            message = "the engine stopped before its answer was complete; send the request again"
            raise Refusal(Outcome.ENGINE_LOST, message, retry_after_s=RETRY_ENGINE_S) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._terms.shapes.give_up(self.call.kind)
            message = "the engine's answer could not be read; send the request again"
            raise Refusal(Outcome.ENGINE_LOST, message, retry_after_s=RETRY_ENGINE_S) from error
        sized = (*_WHOLE, (b"Content-Length", b"%d" % len(body)), *own)
        reply.start(status, [*end_to_end(upstream.headers, sized), *sized])
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
        if tokens > 1:
            self._dispatcher.news.append((self._ticket, tokens, now_s))

    def _count(self, answer: Answer) -> None:
        record, usage = self._record, answer.usage()
        if (passage := answer.passage) is not None and passage.last_s is not None:
            record.last_token_s = max(passage.last_s, record.last_token_s or 0.0)
            record.bytes_out += passage.sent_bytes
        if usage is not None:
            record.prompt_tokens, record.output_tokens = usage.prompt_tokens, usage.output_tokens
            self._terms.ratio.learn(self.call.prompt, usage.prompt_tokens)
        elif answer.tokens:
            record.output_tokens = answer.tokens
        if self.call.kind is RouteKind.POOLING and record.outcome is Outcome.COMPLETED:
            record.first_token_s = self._loop.time()

    def _predict(self) -> Prediction | None:
        call = self.call
        if self._lengths is None or call.kind is RouteKind.POOLING:
            return None
        found = call.prompt
        question = LengthQuestion(self._record.route, call.tenant, found.template, call.prompt_tokens, found.text)
        try:
            return self._lengths.predict(question)
        except Exception as error:  # whatever is wrong with the predictor, requests go on without it
            tell(error, self._record)
            return None

    def _better(self, prediction: Prediction) -> None:
        lengths = prediction.lengths(self.call.max_tokens)
        if self._dispatcher.lengths(self._ticket, lengths):
            self._record.predicted_tokens = lengths.p50

    def _learn(self, tokens: int | None) -> None:
        if self._prediction is None or self._lengths is None or not tokens:
            return
        each, most = round(tokens / self.call.sequences), self.call.max_tokens
        truncated = most is not None and each >= most
        try:
            self._lengths.observe(self._prediction, max(1, each), truncated=truncated, asked=self._asked)
        except Exception as error:  # the answer is with its client already
            tell(error, self._record)
