"""Why something cannot be had: a type with its numbers for each kind, and one place that turns them into sentences."""
