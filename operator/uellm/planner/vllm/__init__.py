"""vLLM's own rules: its flags, the flags a user may not set, its even split of layers."""
