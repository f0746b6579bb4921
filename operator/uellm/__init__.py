"""UELLM: from one LLMService to a running, SLO-ordered vLLM on the GPUs that are really there."""

__version__ = "0.1.0"
