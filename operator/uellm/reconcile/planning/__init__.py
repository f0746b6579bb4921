"""Plans all services together: the planner's request, the worker process, the ledger of promised GPUs."""
