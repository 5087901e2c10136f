"""Edge attribution patching as a TransformerLens user would write it, to be timed beside ours, and compared with it.

One base pass with hooks that keep what each reader sees, one source pass, one backward pass a point of the path
(Syed et al. 2023; Hanna et al. 2024). A head's q, k and v inputs are added up, as ours are one input. Needs the
extra `torch`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from siitjax.analysis.discovery.attribution import STEPS
from siitjax.analysis.discovery.pairs import Pairs
from siitjax.io.trained import Trained
from siitjax.model.nodes import EMBED, LOGITS, Node
from siitjax.torch.hooked import to_hooked_transformer

Values = dict[str, Tensor]


class EapPeer:
    """The attribution methods in PyTorch, eager, on all pairs at once."""

    def __init__(self, trained: Trained, pairs: Pairs, threads: int = 1):
        torch.set_num_threads(threads)
        self.nodes = trained.case.circuit.nodes
        self.model = to_hooked_transformer(trained.model)
        self.model.set_use_attn_result(True)
        self.model.set_use_split_qkv_input(True)
        self.model.set_use_hook_mlp_in(True)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.base, self.source = (torch.tensor(np.asarray(tokens)).long() for tokens in pairs)
        self.counted = torch.tensor(np.asarray(trained.case.counted_mask(jnp.asarray(pairs.base))))
        layers = range(self.model.cfg.n_layers)
        mlps = [] if self.model.cfg.attn_only else layers
        self.sends = ["hook_embed", *(f"blocks.{i}.attn.hook_result" for i in layers)]
        self.sends += [f"blocks.{i}.hook_mlp_out" for i in mlps]
        self.reads = [f"blocks.{i}.hook_{kind}_input" for i in layers for kind in "qkv"]
        self.reads += [*(f"blocks.{i}.hook_mlp_in" for i in mlps), f"blocks.{layers[-1]}.hook_resid_post"]

    def eap(self) -> Float[np.ndarray, " edge"]:
        """As `siitjax.analysis.discovery.attribution.eap`."""
        return self._scored([0.0])

    def eap_ig_inputs(self) -> Float[np.ndarray, " edge"]:
        """As `siitjax.analysis.discovery.attribution.eap_ig_inputs`."""
        return self._scored([1 - step / STEPS for step in range(1, STEPS + 1)])

    def _scored(self, path: list[float]) -> Float[np.ndarray, " edge"]:
        _, there = self._cached(self.source)
        clean, here = self._cached(self.base)
        gradients = [self._gradients(part, here, there, clean.argmax(-1)) for part in path]
        mean = {name: torch.stack([each[name] for each in gradients]).mean(0) for name in self.reads}
        writes = torch.stack([_of(node, there, "send") - _of(node, here, "send") for node in self.nodes])
        readers = torch.stack([_of(node, mean, "read") for node in self.nodes.readers])
        products = torch.einsum("rbtd,sbtd->rs", readers, writes) / self.counted.sum()
        at = lambda sender, reader: (self.nodes.readers.index(reader), self.nodes.nodes.index(sender))
        return np.array([products[at(*edge)].item() for edge in self.nodes.possible_edges])

    @torch.no_grad()
    def _cached(self, tokens: Tensor) -> tuple[Tensor, Values]:
        """The logits, and what each sender writes."""
        found: Any = self.model.run_with_cache(tokens, names_filter=lambda name: name in self.sends)
        return found[0], dict(found[1])

    def _gradients(self, part: float, here: Values, there: Values, answer: Tensor) -> Values:
        """Of the log-odds that the base run's answer loses, at what each reader sees, where the embedding has come so
        far from the base's to the source's."""
        seen: Values = {}

        def embed(value, hook):
            return here[hook.name] + part * (there[hook.name] - here[hook.name])

        def keep(value, hook):
            seen[hook.name] = value if value.requires_grad else value.requires_grad_()
            value.retain_grad()
            return value

        hooks: Any = [("hook_embed", embed), *((name, keep) for name in self.reads)]
        logits: Any = self.model.run_with_hooks(self.base, fwd_hooks=hooks)
        given = torch.nn.functional.one_hot(answer, logits.shape[-1]).bool()
        others = logits.masked_fill(given, -torch.inf).logsumexp(-1)
        odds = logits.gather(-1, answer[..., None])[..., 0] - others
        (-(odds * self.counted).sum()).backward()
        found = {name: value.grad for name, value in seen.items()}
        return {name: gradient for name, gradient in found.items() if gradient is not None}


def _of(node: Node, values: Values, what: str) -> Tensor:
    """What a node writes, or the gradient at what it reads: (pair, position, d_model)."""
    if node == EMBED:
        return values["hook_embed"]
    if node == LOGITS:
        return values[max((name for name in values if name.endswith("resid_post")), key=len)]
    if node.head is None:
        return values[f"blocks.{node.layer}.hook_mlp_{'out' if what == 'send' else 'in'}"]
    if what == "send":
        return values[f"blocks.{node.layer}.attn.hook_result"][:, :, node.head]
    q, k, v = (values[f"blocks.{node.layer}.hook_{kind}_input"][:, :, node.head] for kind in "qkv")
    return q + k + v
