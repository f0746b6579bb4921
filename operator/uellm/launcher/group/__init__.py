"""A replica that spans nodes: the launchers of its pods agree on what each does before any engine starts."""
