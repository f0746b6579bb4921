"""Step times that sidecars measured: what they say about a plan, and what is kept of them for later plans."""
