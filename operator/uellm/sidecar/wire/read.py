"""Parses a request into a Call.

The body is parsed once. A request that cannot be parsed is sent to the engine unchanged, so that the client sees the
engine's own error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from uellm.prompt import Prompt, Ratio, of_request
from uellm.proxying.routes import HeaderLookup
from uellm.sidecar.scheduling import Targets
from uellm.sidecar.wire import slo
from uellm.sidecar.wire.audio import audio_tokens
from uellm.sidecar.wire.call import Call, Mode
from uellm.sidecar.wire.shape import AnswerShapes
from uellm.vllm_routes import AUDIO, SCHEDULED, RouteKind

COMPLETION_TOKENS = 16
"""vLLM's limit for a completion that sets none."""

UNREAD_TOKENS = 256
"""Assumed prompt length of a request that is not parsed."""

MAX_PARSED_BYTES = 16 * 1024 * 1024
"""Longer bodies, such as those with images, are sent unparsed: parsing them would hold up all streams."""

MAX_NESTED = 100_000
"""Bodies with more objects and lists are sent unparsed, too: each costs far more than its bytes."""

MAX_COMMAS = 1_000_000
"""So are bodies with more commas: the numbers of a list, such as token ids, cost more than their bytes as well. A text
with so many is longer than models take."""

MAX_SEQUENCES = 4096
MOST_TOKENS = 2**31
"""Of an answer. A client may name any number; a larger one says the same."""

_SAMPLING = frozenset(
    (
        *("model", "n", "seed", "stream", "temperature", "top_p", "top_k", "min_p", "user", "priority", "request_id"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "logprobs", "max_tokens"),
        *("stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens", "bad_words"),
        *("allowed_token_ids", "skip_special_tokens", "spaces_between_special_tokens", "cache_salt", "session_id"),
        *("truncate_prompt_tokens", "truncation_side", "add_special_tokens", "response_format"),
    )
)
_PLAIN = {
    RouteKind.CHAT: _SAMPLING | {"messages", "top_logprobs", "max_completion_tokens", "metadata", "store"},
    RouteKind.COMPLETIONS: _SAMPLING | {"prompt"},
}
"""Fields that leave the streamed and the non-streaming answer equal. Others (tools, echo, beam search, prompt logprobs,
token ids, KV transfer ...) change where something appears, or do not support streams."""

_PLAIN_STREAM = {kind: names | {"stream_options"} for kind, names in _PLAIN.items()}

_CONDITIONS = frozenset(("n", "stream", "response_format", "logprobs"))
"""Of the plain fields, those that are so with some values only."""

_LISTS = {RouteKind.POOLING, RouteKind.COMPLETIONS, RouteKind.TOKEN_IDS}
"""Bodies that may have lists of token ids."""

_ORDERED = _PLAIN.keys() | {RouteKind.CONVERSATIONS, RouteKind.TOKEN_IDS}
"""Bodies that may have a `priority`."""

_ORCA = "endpoint-load-metrics-format"
"""Requests a header that vLLM sends only with non-streaming answers."""

# Members of enums that every request is compared with: to look one up in its class takes longer than to compare it.
_OTHER, _TOKEN_IDS, _POOLING = RouteKind.OTHER, RouteKind.TOKEN_IDS, RouteKind.POOLING
_RESPONSES, _COMPLETIONS = RouteKind.RESPONSES, RouteKind.COMPLETIONS
_AS_IS, _AGGREGATE, _STREAM_STRIP_USAGE = Mode.AS_IS, Mode.AGGREGATE, Mode.STREAM_STRIP_USAGE

_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")

_DECODER = json.JSONDecoder()
_JSON_BLANKS = " \t\n\r"
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)

_STREAM = b'"stream":true,"stream_options":{"include_usage":true}'
_USAGE = b'"stream_options":{"include_usage":true}'


@dataclass
class Terms:
    """What was learned about the engine and is used to parse requests."""

    shapes: AnswerShapes = field(default_factory=AnswerShapes)
    ratio: Ratio = field(default_factory=Ratio)


def read(
    path: str, headers: HeaderLookup, body: bytes, targets: Targets, terms: Terms, *, accepts_priority: bool = False
) -> Call:
    """Parse a request to a scheduled route; `targets`: those that `slo.targets_of` found in its headers.

    `accepts_priority`: the engine orders requests by a `priority` in the body.
    """
    kind = SCHEDULED[path]
    document = _parse(body) if kind is not _OTHER and (len(body) <= MAX_NESTED or _is_parsed_soon(body)) else None
    if document is None:
        return unread(path, headers, body, targets)
    tenant = slo.sender_of(headers)
    found = of_request(kind, document)
    sampling = document if kind is not _TOKEN_IDS else _sampling(document)
    sequences = 1 if found.prompts == 1 and "n" not in sampling else _sequences(sampling, found)
    mode = _mode(kind, document, headers, terms, found, sequences)
    call = Call(path, kind, mode, targets, tenant, found, terms.ratio.tokens(found), sequences, body=body)
    call.model = named if isinstance(named := document.get("model"), str) else ""
    call.max_tokens = _max_tokens(kind, sampling)
    call.each_step = kind in _PLAIN and document.keys() <= _PLAIN_STREAM[kind]
    if mode is _AGGREGATE:
        call.shape = terms.shapes.get(kind)
        call.may_batch = sequences == 1 and terms.shapes.batches
    elif mode is _AS_IS:
        call.teaches = terms.shapes.wanted(kind) and _is_plain(kind, document, headers, found)
    call.takes_priority = accepts_priority and _takes_priority(path, kind, document)
    call.background = "background" in document and kind is _RESPONSES and document["background"] is True
    _change(call, document)
    return call


def unread(path: str, headers: HeaderLookup, body: bytes, targets: Targets) -> Call:
    """A request that is sent unchanged, and of which nothing is known but the length of speech."""
    tenant = slo.sender_of(headers)
    return Call(path, SCHEDULED[path], Mode.AS_IS, targets, tenant, Prompt(), _unread_tokens(path, body), body=body)


def _unread_tokens(path: str, body: bytes) -> int:
    """What is known of the length without parsing. Very many commas separate token ids."""
    if path in AUDIO:
        return audio_tokens(body)
    commas = body.count(b",") if len(body) > MAX_COMMAS and SCHEDULED[path] in _LISTS else 0
    return commas if commas > MAX_COMMAS else UNREAD_TOKENS


def _is_parsed_soon(body: bytes) -> bool:
    """Of a body that is long enough to have too many objects and lists."""
    size = len(body)
    nested_seldom = size <= MAX_PARSED_BYTES and body.count(b"{") + body.count(b"[") <= MAX_NESTED
    return nested_seldom and (size <= MAX_COMMAS or body.count(b",") <= MAX_COMMAS)


def _parse(body: bytes) -> dict[str, Any] | None:
    """The object in the body; None if it is not an object, or not in UTF-8."""
    try:
        text = body.decode().strip(_JSON_BLANKS)
        document, end = _DECODER.raw_decode(text)  # `json.loads` would search for the blanks twice more
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and end == len(text) else None


def _sampling(document: dict[str, Any]) -> dict[str, Any]:
    """Where `n` and the limit of tokens are in a body with token ids; in others they are beside the prompt."""
    given = document.get("sampling_params")
    return given if isinstance(given, dict) else {}


def _sequences(document: dict[str, Any], found: Prompt) -> int:
    given = document.get("n")
    return min((given if _is_count(given) else 1) * found.prompts, MAX_SEQUENCES)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _takes_priority(path: str, kind: RouteKind, document: dict[str, Any]) -> bool:
    """Whether vLLM orders it by its priority, and takes this one.

    Any other value stays in the body, so that the client gets vLLM's own error.
    """
    if kind not in _ORDERED and (kind is not RouteKind.POOLING or path == "/generative_scoring"):
        return False
    value = document.get("priority", 0)
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _max_tokens(kind: RouteKind, document: dict[str, Any]) -> int | None:
    if kind is _POOLING:
        return 1
    for name in _LIMITS:
        if name in document and _is_count(value := document[name]):
            return min(value, MOST_TOKENS)
    return COMPLETION_TOKENS if kind is _COMPLETIONS and "max_tokens" not in document else None


def _mode(
    kind: RouteKind, document: dict[str, Any], headers: HeaderLookup, terms: Terms, found: Prompt, sequences: int
) -> Mode:
    if "stream" in document and document["stream"] is True:
        # One of several choices may end long before the usage event, which its last event would have to wait for.
        one = sequences == 1 and ("n" not in document or document["n"] in (None, 1))
        strips = kind in _PLAIN and one and ("stream_options" not in document or _leaves_out_usage(document))
        return _STREAM_STRIP_USAGE if strips else Mode.STREAM_AS_IS
    known = terms.shapes.get(kind) is not None
    return _AGGREGATE if known and _is_plain(kind, document, headers, found) else _AS_IS


def _leaves_out_usage(document: dict[str, Any]) -> bool:
    options = document.get("stream_options")
    return options is None or (isinstance(options, dict) and not options.get("include_usage"))


def _is_plain(kind: RouteKind, document: dict[str, Any], headers: HeaderLookup, found: Prompt) -> bool:
    """Whether the streamed and the non-streaming answer have the same content."""
    return (
        kind in _PLAIN
        and document.keys() <= _PLAIN[kind]
        and (document.keys().isdisjoint(_CONDITIONS) or _meets_conditions(document))
        and not found.media
        and headers.get(_ORCA) is None
    )


def _meets_conditions(document: dict[str, Any]) -> bool:
    wanted = document.get("response_format")
    return (
        (document.get("n") is None or _is_count(document["n"]))
        and (document.get("stream") is None or document["stream"] is False)
        and (wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text"))
        and not (document.get("logprobs") and document.get("stop"))
    )


def _change(call: Call, document: dict[str, Any]) -> None:
    """Set the fields to append to the body, and remove them from the body itself."""
    names: tuple[str, ...] = ()
    if call.mode is _AGGREGATE:
        names, call.added = ("stream", "stream_options"), _STREAM
    elif call.mode is _STREAM_STRIP_USAGE:
        names, call.added = ("stream_options",), _USAGE
    if call.takes_priority:
        names = (*names, "priority")
    kept = document
    if names and not document.keys().isdisjoint(names):
        kept = {name: value for name, value in document.items() if name not in names}
        call.body = _written(kept)
    call.empty = not kept


def _written(document: dict[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(document).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which can only be written as an escape
        return json.dumps(document, separators=(",", ":")).encode()
