"""The solver's algorithms on dicts and lists, for instances too small for arrays to pay."""
