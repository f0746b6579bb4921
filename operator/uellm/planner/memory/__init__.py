"""What an engine's memory holds: weights, KV cache, activations, graphs, context."""
