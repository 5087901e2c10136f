"""The high-level model: variables on nodes, which make a circuit; with its strings and its loss, a case.

In come tokens and perhaps a swap; out go the label of each token and every variable's value. `combine` puts several
cases into one transformer, `registry` finds them by name, `validate` looks for labels that cannot be learned,
`behaviour` tells a case from an edited one, and `ground_truth` is what scorers of circuits take.
"""
