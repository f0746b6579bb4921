"""Dynamic resource allocation: what DRA drivers publish, what claims hold, and why pods cannot claim GPUs."""
