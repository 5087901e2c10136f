"""Sparse autoencoders on activations whose variables are known, and scores of what they find.

In come a trained model, its case and a site; out go dictionaries, and how well their latents, and controls, tell and
swap the known variables. `study` does both for many, `results` keeps them.
"""
