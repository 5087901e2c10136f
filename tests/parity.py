"""Our models in torch against themselves in JAX: every loader, on random inputs.

    python -m tests.parity                    # the shipped models
    python -m tests.parity --weights=random   # their shapes with random weights

Inputs are random samples of the model's case. A line a model, and for each loader the largest difference between it
and JAX in the logits, in the activations at all nodes, and in both of patched runs, where nodes take another input's
values: every node alone, all of them, and random sets of unused ones, as in the metrics. A difference is relative to
the largest value at the site, or to 1: logits are sums of terms as large as that, and rounded accordingly. The column
float64 shows that rounding is all there is: there both compute in double precision, and the patched runs are under
random sets of any nodes, circuit and all, which can magnify rounding in single precision beyond the tolerance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Bool, Int
from rich import box
from rich.console import Console
from rich.table import Table

import cases
import siitjax.torch
from siitjax.base.choice import check_choice
from siitjax.base.command import Command, flag, main
from siitjax.model.config import TransformerConfig
from siitjax.model.nodes import Node, NodeList
from siitjax.model.transformer import Transformer, init_transformer
from siitjax.model.weights import with_weights
from siitjax.torch import to_bridge, to_torch

LENS = version("transformer-lens")
HAS_HOOKED = int(LENS.split(".")[0]) < 4
"""Whether TransformerLens has HookedTransformer: its version 4 has no more."""
TOLERANCE = 1e-5
"""In float32, fixed before the first run."""
EXACT = 1e-12
"""In float64."""
Named = dict[str, np.ndarray]
Run = Callable[[torch.Tensor, Sequence[Node], Named], Named]
"""`run(tokens, nodes, source)`: logits and activations by name, the nodes taking their values from the source's."""


class Difference(NamedTuple):
    """The largest differences of one loader from JAX."""

    logits: float
    activations: float
    patched: float


def random_model(config: TransformerConfig, seed: int = 0) -> Transformer:
    """A transformer whose weights are all random, biases and LayerNorms included, and of about the initial size."""
    rng = np.random.default_rng(seed)

    def drawn(path, blank):
        std = (2 / sum(blank.shape[-2:])) ** 0.5 if blank.ndim > 1 else 0.1
        mean = float(jax.tree_util.keystr(path).endswith(".w"))
        return jnp.asarray(mean + std * rng.standard_normal(blank.shape), jnp.float32)

    blank = jax.eval_shape(lambda: init_transformer(config, key=jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(drawn, blank)


Tokens = Int[np.ndarray, "batch seq"]


def random_tokens(config: TransformerConfig, inputs: int, seed: int = 0) -> Tokens:
    """Tokens of no case."""
    return np.random.default_rng(seed).integers(0, config.d_vocab, (inputs, config.n_ctx)).astype(np.int32)


def swaps(nodes: NodeList, among: Bool[np.ndarray, " node"] | None = None) -> Bool[np.ndarray, "mask node"]:
    """Every node alone, all of them, and random sets of those in `among`, or of any."""
    random = np.random.default_rng(0).random((4, len(nodes))) < 0.5
    one, every = np.eye(len(nodes), dtype=bool), np.ones((1, len(nodes)), bool)
    return np.concatenate([one, every, random if among is None else random & among])


def differences(
    model: Transformer, base: Tokens, source: Tokens, masks: Bool[np.ndarray, "mask node"]
) -> dict[str, Difference]:
    """The largest differences of every loader, on these inputs; swaps take their values from the source's runs."""
    nodes = model.config.nodes
    ours_source, ours = (_ours(model, tokens, None, tokens) for tokens in (source, base))
    ours_patched = [_ours(model, base, mask, source) for mask in masks]
    base_tokens, source_tokens = (torch.from_numpy(tokens).long() for tokens in (base, source))
    found = {}
    for name, load in LOADERS.items():
        run = load(model)
        theirs_source = run(source_tokens, (), {})
        clean = [_apart(ours, run(base_tokens, (), {})), _apart(ours_source, theirs_source)]
        patched = [
            max(_apart(expected, run(base_tokens, nodes.named(mask), theirs_source)).values())
            for mask, expected in zip(masks, ours_patched, strict=True)
        ]
        logits = max(each["logits"] for each in clean)
        activations = max(value for each in clean for key, value in each.items() if key != "logits")
        found[name] = Difference(logits, activations, max(patched))
    return found


def _apart(ours: Named, theirs: Named) -> dict[str, float]:
    if ours.keys() != theirs.keys():
        raise AssertionError(f"sites differ: {sorted(ours.keys() ^ theirs.keys())}")
    return {name: _relative(ours[name], theirs[name]) for name in ours}


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max()))


def in_float64(model: Transformer, base: Tokens, source: Tokens) -> float:
    """The largest difference between JAX and the plain module, both in float64, anywhere and under any swap."""
    nodes, module, found = model.config.nodes, to_torch(model).double(), [0.0]
    with jax.enable_x64(True), torch.no_grad():
        double = jax.tree.map(lambda weight: jnp.asarray(weight, jnp.float64), model)
        base_tokens, (_, held) = torch.from_numpy(base).long(), module(torch.from_numpy(source).long())
        for mask in (np.zeros(len(nodes), bool), *swaps(nodes)):
            logits, patched = module(base_tokens, (nodes.named(mask), held))
            theirs = {name: value.numpy() for name, value in {"logits": logits, **patched}.items()}
            found += _apart(_ours(double, base, mask, source), theirs).values()
    return max(found)


@jax.jit
def _patched(model: Transformer, tokens, mask, source):
    run = lambda tokens, source: model(tokens, (mask, model(source)[1]))
    return jax.vmap(run)(tokens, source)


def _ours(
    model: Transformer,
    tokens: Tokens,
    mask: Bool[np.ndarray, " node"] | None,
    source: Tokens,
) -> Named:
    none = np.zeros(len(model.config.nodes), bool)
    logits, held = jax.device_get(_patched(model, tokens, none if mask is None else mask, source))
    named = {"logits": logits, "hook_embed": held.embed}
    for i in range(model.config.n_layers):
        named[f"blocks.{i}.attn.hook_z"] = held.z[:, i]
        if held.post is not None:
            named[f"blocks.{i}.mlp.hook_post"] = held.post[:, i]
    return named


def _plain(model: Transformer) -> Run:
    module = to_torch(model)

    def run(tokens, nodes, source):
        with torch.no_grad():
            logits, held = module(tokens, (nodes, {name: torch.from_numpy(value) for name, value in source.items()}))
        return {name: value.numpy() for name, value in {"logits": logits, **held}.items()}

    return run


def _hooks(load: Callable[[Transformer], Any]) -> Callable[[Transformer], Run]:
    """The run of a model that TransformerLens hooks; written as a user of TransformerLens would, with its names."""

    def loaded(model: Transformer) -> Run:
        hooked = load(model)
        wanted = {node.hook.split("[")[0] for node in model.config.nodes}

        def patch(node: Node, source: Named):
            name, _, own = model.config.hook(node).rstrip("]").partition("[")
            first, _, end = own.partition(":")
            part = slice(int(first), int(end)) if end else int(own) if own else slice(None)

            def hook(value, hook):
                value = value.clone()
                value[:, :, part] = torch.from_numpy(source[name])[:, :, part]
                return value

            return name, hook

        def run(tokens, nodes, source):
            with torch.no_grad(), hooked.hooks(fwd_hooks=[patch(node, source) for node in nodes]):
                logits, cache = hooked.run_with_cache(tokens)
            return {"logits": logits.numpy(), **{name: cache[name].numpy() for name in wanted}}

        return run

    return loaded


LOADERS: dict[str, Callable[[Transformer], Run]] = {"torch": _plain, "bridge": _hooks(to_bridge)}
"""By `to_torch` and `to_bridge`, and by `to_hooked_transformer` where there is one."""

if HAS_HOOKED:
    LOADERS["hooked"] = _hooks(siitjax.torch.to_hooked_transformer)


def same_bits(model: Transformer) -> bool:
    """Whether JAX -> torch -> JAX gives every weight back, bit for bit; by way of a HookedTransformer where it is."""
    if HAS_HOOKED:
        back = siitjax.torch.from_hooked_transformer(siitjax.torch.to_hooked_transformer(model))
    else:
        weights = {name: weight.detach().numpy() for name, weight in to_torch(model).state_dict().items()}
        back = with_weights(jax.tree.map(jnp.zeros_like, model), weights)
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(back), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@dataclass(frozen=True)
class Parity(Command):
    """Compares our models in torch, by every loader, with themselves in JAX; exits 1 where they differ."""

    models: tuple[str, ...] = flag(cases.MODELS, "which")
    inputs: int = flag(1_000, "random inputs a model", least=1)
    weights: Literal["shipped", "random"] = flag("shipped", "shipped, or random ones in the same shapes")

    def run(self) -> int:
        check_choice("weights", self.weights, ("shipped", "random"))
        torch.set_num_threads(1)
        table = Table(
            title=f"Largest differences from JAX, {self.inputs} inputs, TransformerLens {LENS}", box=box.SIMPLE_HEAD
        )
        for column in (
            "model",
            *(f"{name}\n{what}" for name in LOADERS for what in Difference._fields),
            "torch\nfloat64",
            "round trip",
        ):
            table.add_column(column, justify="right")
        good = True
        for name in self.models:
            shipped = None if self.weights == "random" else cases.load(name)
            case = cases.build(name) if shipped is None else shipped.case
            model = random_model(case.config) if shipped is None else shipped.model
            base, _ = case.draw(self.inputs, self.inputs, np.random.default_rng(0))
            source, masks = np.roll(base, 1, 0), swaps(case.circuit.nodes, case.circuit.unused_mask)
            found, same = differences(model, base, source, masks), same_bits(model)
            values = [value for difference in found.values() for value in difference]
            exact = in_float64(model, base[:100], source[:100])
            good = good and same and max(values) <= TOLERANCE and exact <= EXACT
            figures = [f"{value:.1e}" for value in (*values, exact)]
            table.add_row(name, *figures, "same bits" if same else "DIFFERENT")
        Console(width=160).print(table)
        within = f"within {TOLERANCE:g} in float32 and {EXACT:g} in float64, and give the same bits back"
        print(f"{'All' if good else 'NOT all'} are {within}.")
        return 0 if good else 1


if __name__ == "__main__":
    main(Parity)
