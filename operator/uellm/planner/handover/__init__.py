"""The documents that carry a plan to the extender, the launcher and the sidecar, and what reads them again."""
