"""Reads a text model by the vocabulary of its config.json: the fields that model families share, whatever its class.

`decoder` puts most families together from those fields and from the traits in `table`: what no field says, such as
norms, biases and whether the MLP is gated. Families whose layers are unlike have a reader of their own (`readers`).
"""
