"""The parts of `uellm run`: this machine as a node, the plan's files, and the processes that serve the model."""
