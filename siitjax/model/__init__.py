"""The low-level model: a transformer, the nodes and edges where it can be swapped, and its weights.

In come a config, tokens and perhaps a swap; out go logits, and the activations that a swap of another run can take.
`transformer` is the reference, written as the papers do; `forms` says how a batch of it runs, `cpu` is the form that is
fastest there; `weights` and `tl_config` speak TransformerLens' names.
"""
