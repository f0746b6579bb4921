"""Length of a prompt, and what it shares with others, without a tokenizer.

Lengths follow from characters (ratio.py); token ids are counted. Hashes are stable over restarts, because the
predictor's state is kept, and equal in the sidecar and in the gateway, which compares them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

CHARACTERS_PER_TOKEN = 4.0
"""Before the first count from the engine: English text with a current tokenizer."""

MESSAGE_TOKENS = 5
"""Approximate tokens that a chat template adds per message."""

MEDIA_TOKENS = 576
"""An image of 336 x 336 in patches of 14. The size of media is unknown, as they are given by address."""

BLOCK_TOKENS = 512
_BLOCK_CHARACTERS = int(BLOCK_TOKENS * CHARACTERS_PER_TOKEN)
MAX_BLOCKS = 64
"""Blocks of a prompt that are hashed at most; later ones say little about what is cached."""

OPENING_CHARACTERS = 48
MAX_VALUES = 50_000
"""Values of a prompt that are looked at, for that holds up all streams. A long conversation has some thousands."""

TEXT_CHARACTERS = 600
SYSTEM_CHARACTERS = 4096

_MEDIA = frozenset(
    (
        *("image_url", "input_image", "image", "input_audio", "audio_url", "video_url", "video", "file", "input_file"),
        *("image_embeds", "audio_embeds", "video_embeds", "prompt_embeds"),
    )
)
_UNTYPED = ("image_url", "audio_url", "video_url", "input_audio", "image_embeds", "audio_embeds", "video_embeds")
"""Fields by which vLLM recognises a medium that has no `type`."""
_SYSTEM = ("system", "developer")
_NO_TEXT = frozenset(("role", "type"))


@dataclass
class Prompt:
    """What was found in the body of a request. Never changed; not frozen, because that triples the time to make one."""

    characters: int = 0
    token_ids: int = 0
    media: int = 0
    messages: int = 0
    prompts: int = 1
    templates: int = 0
    """Of the prompts, those around which the engine puts a template."""
    partial: bool = False
    """A part is elsewhere, such as an earlier answer, or is cut off: the length says little."""
    template: int = 0
    """Hash of what requests of one program share: the instructions and the begin of the text."""
    prefix: tuple[int, ...] = ()
    """Hashes of the text up to the end of each complete block of about `BLOCK_TOKENS` tokens."""
    text: str = field(default="", repr=False)
    """The begin of the last turn, for the predictor only."""


def with_adapter(number: int, adapter: str) -> int:
    """A number that stands for a prompt's beginning, apart for each adapter: their answers and KV caches differ."""
    return number ^ zlib.crc32(adapter.encode()) if adapter else number


def of_chat(body: Mapping[str, Any]) -> Prompt:
    """A body with `messages`, and maybe `system` and `tools` (chat completions, Anthropic's messages)."""
    messages = body.get("messages")
    system = [body["system"]] if body.get("system") else []
    turns, count = [], 0
    for turn in messages if isinstance(messages, list) else ():
        if isinstance(turn, dict):
            count += 1
            if turn.get("role") in _SYSTEM:
                system.append(turn.get("content"))
            else:
                turns.append(turn)
    return _prompt([*system, body.get("tools"), *turns], len(system), len(turns), count)


def of_responses(body: Mapping[str, Any]) -> Prompt:
    """A body of the Responses API."""
    given = body.get("input")
    turns = given if isinstance(given, list) else [given]
    return _prompt([body.get("instructions"), body.get("tools"), *turns], 1, len(turns), len(turns))


def of_text(given: Any) -> Prompt:
    """A prompt or input: a text, several, token ids, or several lists of them."""
    if isinstance(given, str):
        return _prompt([given], 0, 1, 0)
    if not isinstance(given, list) or not given:
        return Prompt()
    if isinstance(given[0], int):
        return Prompt(token_ids=len(given), prefix=_of_ids(given))
    if isinstance(given[0], list):
        return Prompt(token_ids=sum(len(ids) for ids in given if isinstance(ids, list)), prompts=len(given))
    return replace(_prompt(given, 0, len(given), 0), prompts=len(given), prefix=())


def of_anything(body: Mapping[str, Any]) -> Prompt:
    """Any other body: all texts in it except the model's name."""
    return _prompt([value for name, value in body.items() if name != "model"], 0, 0, 0)


def _prompt(parts: list[Any], system: int, turns: int, messages: int) -> Prompt:
    """`parts`: the whole prompt. It begins with `system` instructions and ends with `turns` turns, which determine the
    template."""
    found, ends = _texts(parts)
    texts = [text for text in found if text is not None]
    characters, count = sum(map(len, texts)), len(parts)
    instructions = beginning = text = ""
    if system:
        instructions = _joined(_between(0, system, parts, found, ends), SYSTEM_CHARACTERS)
    if turns:
        text = _joined(_between(count - 1, count, parts, found, ends), TEXT_CHARACTERS)
        beginning = text[:OPENING_CHARACTERS]
        if turns > 1:
            first = count - turns
            beginning = _joined(_between(first, first + 1, parts, found, ends), OPENING_CHARACTERS)
    template = _hash(f"{instructions}\0{beginning}")
    prefix = _of_texts(texts) if characters >= _BLOCK_CHARACTERS else ()
    media, templates = len(found) - len(texts), 1 if messages else 0
    # Positional arguments, in the order of `Prompt`, because this runs for every request.
    return Prompt(characters, 0, media, messages, 1, templates, False, template, prefix, text)


def _texts(parts: list[Any]) -> tuple[list[str | None], list[int]]:
    """Every text in the parts of a prompt, in order, among the first `MAX_VALUES` values; None for each medium.

    Also their number before the first part, and up to the end of each part that all was seen of.
    """
    found: list[str | None] = []
    ends, left = [0], MAX_VALUES
    for part in parts:
        if part is None:
            left = left - 1 if left else 0
        elif left > 1 and _is_plain_turn(part):
            found.append(part["content"])
            left -= 2
        else:
            left = _add_texts(part, found, left)
            if left < 0:
                break
        ends.append(len(found))
    return found, ends


def _between(first: int, end: int, parts: list[Any], found: list[str | None], ends: list[int]) -> list[str | None]:
    """The texts in the parts from `first` to before `end`, of what was found in all parts."""
    if end < len(ends):
        return found[ends[first] : ends[end]]
    return _texts(parts[first:end])[0]  # there were too many values before them


def _joined(texts: list[str | None], characters: int) -> str:
    if len(texts) == 1:
        return (texts[0] or "")[:characters]
    return "\n".join([text for text in texts if text])[:characters]


def _add_texts(part: Any, found: list[str | None], left: int) -> int:
    """Add the texts of a JSON value to `found`, looking at `left` values. Returns how many are left; -1: too few."""
    waiting = [part]
    while waiting:
        if not left:
            return -1
        left -= 1
        value = waiting.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            waiting.extend(reversed(value))
        elif isinstance(value, dict):
            if _is_medium(value):
                found.append(None)
            else:
                waiting += [value[name] for name in reversed(value) if name not in _NO_TEXT]
    return left


def _is_plain_turn(part: Any) -> bool:
    """Whether it is a turn of one text, as most are."""
    return isinstance(part, dict) and len(part) == 2 and "role" in part and isinstance(part.get("content"), str)


def _is_medium(part: dict[str, Any]) -> bool:
    if "type" in part:
        kind = part["type"]
        return isinstance(kind, str) and kind in _MEDIA
    if part.keys().isdisjoint(_UNTYPED):
        return False
    # A tool's parameter may have such a name; its value is then a schema.
    value = next(part[name] for name in _UNTYPED if name in part)
    return isinstance(value, str) or (isinstance(value, dict) and ("url" in value or "data" in value))


def _of_texts(texts: list[str]) -> tuple[int, ...]:
    size = _BLOCK_CHARACTERS
    text = "\0".join(texts)[: size * MAX_BLOCKS]
    return _chain([text[at : at + size].encode("utf-8", "replace") for at in range(0, len(text) - size + 1, size)])


def _of_ids(ids: list[Any]) -> tuple[int, ...]:
    whole = min(len(ids) // BLOCK_TOKENS, MAX_BLOCKS)
    return _chain([repr(ids[n * BLOCK_TOKENS : (n + 1) * BLOCK_TOKENS]).encode() for n in range(whole)])


def _chain(blocks: list[bytes]) -> tuple[int, ...]:
    hashes, state = [], 0
    for block in blocks:
        state = zlib.crc32(block, state)
        hashes.append(state)
    return tuple(hashes)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())
