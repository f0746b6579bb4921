"""The placement solver: which layers go on which device, in which order. Exact where that is affordable."""
