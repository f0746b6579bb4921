"""The solver's algorithms on numpy arrays."""
