"""Real client libraries in front of vLLM, directly and through the sidecar."""
