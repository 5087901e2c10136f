"""How long it takes: floating point operations, timings of the parts, and the same work in other libraries.

In comes a config; out go seconds. `process` times in a process of its own, `torch_peer` and `saelens_peer` are what
ours is timed beside; these two need the extras, and nothing imports them unasked.
"""
