"""Plans all services together: the request to the planner, the worker process, the ledger of promised GPUs."""
