"""Causal variables: methods that look for a variable inside a node, scored by interchange interventions.

In come a model, its case, a node that holds several variables or one, and pairs of strings. A method gives an
alignment: which part of the node's values is the variable, so that this part alone can be taken from a source run. Out
goes how often the transformer then answers as the causal model does when that variable alone is swapped, and how often
the node's other variables are left alone.
"""
