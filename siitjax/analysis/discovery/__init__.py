"""Circuit discovery: methods that look for a transformer's edges, scored against edges that are known.

In come a model, its case and pairs of strings; out goes a score for each edge (sender, reader) that the transformer
has, in the order of `NodeList.possible_edges`. The larger its absolute value, the more the method holds the edge for
one of the circuit. A method of one's own is a function that does this, which `score.examine` scores like any other.
"""
