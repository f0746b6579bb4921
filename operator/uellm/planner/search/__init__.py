"""The search over tensor x pipeline shapes, replicas and nodes, and the ranking of what it finds."""
