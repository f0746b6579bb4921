"""The path of one request: routing, queueing, sending, relaying the answer."""
