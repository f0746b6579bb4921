"""Why the planner refuses: a type with its figures for each reason, and one module that turns them into sentences."""
