"""The same training step and evaluation as a TransformerLens user would write them, to be timed beside ours.

HookedTransformer, hooks that patch from a cache of the source run, one pass a mask, Adam. The counterfactual labels
are given, computed beforehand: the peer need not run a causal model. Needs the extra `torch`.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformer_lens import ActivationCache, HookedTransformer, HookedTransformerConfig

from siitjax.model.config import TransformerConfig
from siitjax.model.nodes import Node
from siitjax.model.transformer import init_transformer
from siitjax.model.weights import state_dict
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.evaluate import CHUNK
from siitjax.siit.train import EPOCH_PAIRS, Purpose, draw_data, draw_key


def hooked_config(config: TransformerConfig) -> HookedTransformerConfig:
    """TransformerLens' words for one of our shapes."""
    return HookedTransformerConfig(
        n_layers=config.n_layers,
        d_model=config.d_model,
        d_head=config.d_head,
        n_heads=config.n_heads,
        n_ctx=config.n_ctx,
        d_vocab=config.d_vocab,
        d_vocab_out=config.d_vocab_out,
        d_mlp=None if config.attn_only else config.mlp_width,
        act_fn=config.act_fn,
        attn_only=config.attn_only,
        attention_dir=config.attention_dir,
        normalization_type="LN" if config.layer_norm else None,
        device="cpu",
    )


def patch(
    config: TransformerConfig, nodes: Sequence[Node], cache: ActivationCache
) -> list[tuple[str | Callable[..., Any], Callable[..., Any]]]:
    """The hooks that put the cached values of `nodes` in the place of a run's own."""

    def hook(value, hook, part):
        if part is None:
            return cache[hook.name]
        value = value.clone()
        value[:, :, part] = cache[hook.name][:, :, part]
        return value

    parts: dict[str, list[int] | None] = {}  # heads, or neurons; None for all
    for node in nodes:
        name = node.hook.split("[")[0]
        if node.head is None and node.part is None:
            parts[name] = None
        else:
            neurons = config.neurons(node)
            own = [*range(neurons.start, neurons.stop)] if node.head is None else [node.head]
            parts[name] = [*(parts.get(name) or []), *own]
    return [(name, partial(hook, part=which)) for name, which in parts.items()]


class Peer:
    """The step and the evaluation of one member in PyTorch, eager, on the threads that are best."""

    compile_s = 0.0
    counted_flops = 0.0

    def __init__(self, config: TrainConfig, threads: int):
        torch.set_num_threads(threads)
        case, hyper, data = config.case, Hyperparams(), draw_data(config, 0)
        self.config = case.config
        self.nodes, self.circuit_mask = case.circuit.nodes, case.circuit.circuit_mask
        self.unused = self.nodes.named(case.circuit.unused_mask)
        ours = init_transformer(case.config, key=draw_key(jax.random.key(0), Purpose.INIT))
        weights = {name: torch.tensor(value) for name, value in state_dict(ours).items()}
        self.model = HookedTransformer(hooked_config(case.config))
        self.model.load_state_dict(weights, strict=False)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), float(hyper.lr_start), (float(hyper.beta1), float(hyper.beta2))
        )
        self.weights = [float(weight) for weight in (hyper.w_base, hyper.w_iit, hyper.w_siit)]
        self.clip = float(hyper.clip)
        self.rng = np.random.default_rng(0)

        def pairs(base, source):
            """Tokens, and the labels under each single-node swap of the circuit, the last of them under none."""
            masks = jnp.asarray(
                [*np.eye(len(self.nodes), dtype=bool)[self.circuit_mask], np.zeros(len(self.nodes), bool)]
            )

            def labels(base, source):
                values = case.circuit(source)[1]
                return jax.vmap(lambda mask: case.circuit(base, (mask, values))[0])(masks)

            found = jax.jit(jax.vmap(labels, out_axes=1))(base, source)
            return tuple(torch.tensor(np.asarray(x)).long() for x in (base, source, found))

        batch = config.batch_size
        self.batch = pairs(data.train[:batch], data.train[-batch:])
        self.validation = pairs(data.validation, data.validation[::-1])
        self.circuit_nodes = self.nodes.named(self.circuit_mask)
        self.hooks = {node.hook.split("[")[0] for node in self.nodes if node.layer is not None}

    def step(self) -> None:
        """Trains on one batch, as `siitjax.siit.step.make_step` does."""
        base, source, labels = self.batch
        with torch.no_grad():
            _, cache = self.model.run_with_cache(source, names_filter=lambda name: name in self.hooks)
        chosen = int(self.rng.integers(len(self.circuit_nodes)))
        subset = [node for node in self.unused if self.rng.random() < 0.5]
        terms: tuple[tuple[Sequence[Node], int], ...] = (([], -1), ([self.circuit_nodes[chosen]], chosen), (subset, -1))
        loss = torch.zeros(())
        for weight, (nodes, label) in zip(self.weights, terms, strict=True):
            logits = self.model.run_with_hooks(base, fwd_hooks=patch(self.config, nodes, cache))
            loss = loss + weight * torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[label].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    @torch.no_grad()
    def evaluation(self) -> int:
        """Accuracy, IIA, SIIA and the joint and subset forms, on as many pairs as ours while some token is wrong."""
        return self.counted(self.validation, EPOCH_PAIRS)

    def counted(self, validation: tuple[torch.Tensor, ...], pairs: int) -> int:
        """Tokens that are right in the first so many pairs: as many passes as masks."""
        right = 0
        for at in range(0, min(pairs, len(validation[0])), CHUNK):
            base, source, labels = (x[..., at : min(at + CHUNK, pairs), :] for x in validation)
            _, cache = self.model.run_with_cache(source, names_filter=lambda name: name in self.hooks)
            subset = [node for node in self.unused if self.rng.random() < 0.5]
            swaps: list[tuple[Sequence[Node], int]] = [
                ([], -1),
                *(([node], i) for i, node in enumerate(self.circuit_nodes)),
            ]
            swaps += [*(([node], -1) for node in self.unused), (list(self.unused), -1), (subset, -1)]
            for nodes, label in swaps:
                logits = self.model.run_with_hooks(base, fwd_hooks=patch(self.config, nodes, cache))
                right += int((logits.argmax(-1) == labels[label]).sum())
        return right


def best_threads(kind: type[Peer], config: TrainConfig, most: int) -> int:
    """The number of threads, up to `most`, at which the step of a peer of that kind is fastest."""

    def seconds(threads: int) -> float:
        peer, times = kind(config, threads), []
        for _ in range(6):
            began = time.perf_counter()
            peer.step()
            times.append(time.perf_counter() - began)
        return float(np.median(times[1:]))

    return min(range(1, most + 1), key=seconds)
