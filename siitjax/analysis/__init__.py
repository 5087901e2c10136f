"""What is inside a trained model, beside the circuit that it was trained to hold.

In come a model and its case; out go figures. `ablation` looks at the unused nodes, `neurons` at what each neuron of the
MLPs answers to, `sae` at what sparse autoencoders find, `discovery` at how well methods find the known edges.
"""
