"""The methods by name. Each is a function `(model, case, pairs) -> score for each edge`."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from jaxtyping import Float

from siitjax.analysis.discovery.acdc import acdc
from siitjax.analysis.discovery.attribution import eap, eap_ig_activations, eap_ig_inputs
from siitjax.analysis.discovery.controls import magnitude, random_scores
from siitjax.analysis.discovery.edge_masks import edge_pruning
from siitjax.analysis.discovery.information_flow import information_flow
from siitjax.analysis.discovery.pairs import Pairs
from siitjax.analysis.discovery.patching import path_patching
from siitjax.causal.case import Case
from siitjax.model.transformer import Transformer

Method = Callable[[Transformer, Case, Pairs], Float[np.ndarray, " edge"]]

METHODS: Mapping[str, Method] = {
    "path patching KL": path_patching,
    "path patching log-odds": partial(path_patching, metric="log_odds"),
    "EAP": eap,
    "EAP-IG inputs": eap_ig_inputs,
    "EAP-IG activations": eap_ig_activations,
    "ACDC": acdc,
    "edge pruning": edge_pruning,
    "information flow": information_flow,
    "magnitude": magnitude,
    "random": random_scores,
}
CONTROLS = ("information flow", "magnitude", "random")
"""Methods that know nothing of the answer."""
EXACT = ("path patching KL", "path patching log-odds")
"""Methods that patch every edge; the others look for less work."""
