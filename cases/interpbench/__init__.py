"""Five cases of InterpBench (Gupta et al. 2024), rebuilt from their causal models: a task a file.

Sizes and placement are InterpBench's, and so is the transformer's activation, GELU. A context counts BOS.
"""
