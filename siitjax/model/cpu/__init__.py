"""The transformer in the form that a CPU computes fastest: the batch as last axis, gradients written by hand.

The same numbers as `siitjax.model.transformer`, to rounding, which the tests hold it to. `transformer` runs it without
a swap or under swaps of nodes, `edges` under swaps of edges.
"""
