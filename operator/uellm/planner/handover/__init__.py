"""The typed documents that carry a plan to the extender, the launcher and the sidecar, and what is read from them."""
