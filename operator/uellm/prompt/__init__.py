"""Prompts of requests, without a tokenizer: their length, and what they share with others."""

from uellm.prompt.found import BLOCK_TOKENS, MEDIA_TOKENS, Prompt, with_adapter
from uellm.prompt.ratio import Ratio
from uellm.prompt.requested import of_request

__all__ = ["BLOCK_TOKENS", "MEDIA_TOKENS", "Prompt", "Ratio", "of_request", "with_adapter"]
