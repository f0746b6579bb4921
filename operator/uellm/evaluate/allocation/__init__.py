"""Ways to give GPUs to pods, compared on random clusters."""
