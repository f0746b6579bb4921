"""The engine's side: the connection to it, its metrics, whether it is alive and moves."""
