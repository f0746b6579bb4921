"""The scheduler extender: refuses nodes that cannot hold a pod's plan, and ranks the rest."""
