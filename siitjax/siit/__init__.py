"""Both models under the same swap: interchange interventions, the objective, the metrics, one training run.

In come a case, a config and a key; out go weights that hold the case's circuit, and counts of where they do and do not.
`interchange` swaps, `objective` and `edge_sampling` draw what is swapped in training, `evaluate` and `edge_metrics`
count what is right, `train` makes pure functions of all of it.
"""
