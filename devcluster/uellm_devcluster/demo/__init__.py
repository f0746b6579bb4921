"""`make demo`: the main job end to end, adapted to this machine."""
