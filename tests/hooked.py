"""Transformers of all kinds with random weights, and TransformerLens' HookedTransformer with the same, for tests.

The reference runs in torch and swaps nodes by hooks of its own, head by head; it knows nothing of masks. A part of an
MLP is some of its neurons there: what they hold, read and write is cut out by hand."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from siitjax.model.config import TransformerConfig
from siitjax.model.nodes import Node
from siitjax.model.transformer import Activations, Transformer, init_transformer
from siitjax.model.weights import state_dict

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOLERANCE = 1e-5
"""Rounding of a few float32 layers, whose values are of the order of one."""
FELT = 100 * TOLERANCE
"""What a swap or a parameter must move at least, or agreement about it proves nothing."""
SEQ = 7
BATCH = SEQ - 1
"""Room for a change of every token but the first."""
SITES = ("hook_embed", "hook_resid_pre", "hook_z", "hook_post")

torch.set_num_threads(1)  # On matrices this small, threads do nothing but wait for each other.

RELU = TransformerConfig(n_layers=3, d_model=20, d_head=5, n_ctx=SEQ, d_vocab=8, d_vocab_out=3)
VARIANTS = {
    "relu": RELU,
    "one_layer": replace(RELU, n_layers=1, d_model=12, d_head=3),
    "gelu": replace(RELU, n_layers=2, act_fn="gelu", mlp_parts=2),
    "attn_only": replace(RELU, n_layers=2, attn_only=True),
    "no_layer_norm": replace(RELU, n_layers=2, layer_norm=False, d_mlp=7, mlp_parts=(3, 4)),
    "one_head": replace(RELU, n_layers=2, d_head=20, act_fn="gelu", d_mlp=33),
    "bidirectional": replace(
        RELU, n_layers=2, d_model=10, d_head=3, heads=2, act_fn="gelu_new", attention_dir="bidirectional"
    ),
    "attn_only_no_layer_norm": replace(RELU, n_layers=1, attn_only=True, layer_norm=False),
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=tuple(VARIANTS))
Named = dict[str, np.ndarray]


def random_model(config: TransformerConfig) -> Transformer:
    """A transformer of which every weight, biases and LayerNorms included, is random, and of the initial size."""
    rng = np.random.default_rng(0)
    blank = init_transformer(config, key=jax.random.key(0))
    return jax.tree.map(lambda w: w + 0.1 * jnp.asarray(rng.standard_normal(w.shape, np.float32)), blank)


def random_tokens(config: TransformerConfig, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, config.d_vocab, shape).astype(np.int32)


def hooked(config: TransformerConfig) -> "HookedTransformer":
    """TransformerLens' transformer of the same shape, its weights not set yet."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig  # which TransformerLens 4 has no more

    sizes = {name: getattr(config, name) for name in ("n_layers", "d_model", "d_head", "n_heads", "n_ctx")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        found = HookedTransformer(
            HookedTransformerConfig(
                **sizes,
                d_vocab=config.d_vocab,
                d_vocab_out=config.d_vocab_out,
                d_mlp=config.mlp_width,
                act_fn=config.act_fn,
                attn_only=config.attn_only,
                attention_dir=config.attention_dir,
                normalization_type="LN" if config.layer_norm else None,
                init_weights=False,
                device="cpu",
            )
        )
    vars(found)["parts"] = parts_of(config)
    return found


def parts_of(config: TransformerConfig) -> dict[str, tuple[int, slice]]:
    """The layer and the neurons of every MLP, or of its parts, by name."""
    given, width = config.mlp_parts, config.mlp_width
    sizes = [width // given] * given if isinstance(given, int) else list(given)
    name = lambda layer, i: f"MLP{layer}" if len(sizes) == 1 else f"MLP{layer}.{i}"
    places = [(layer, i) for layer in range(config.n_layers) for i in range(len(sizes)) if not config.attn_only]
    return {name(layer, i): (layer, slice(sum(sizes[:i]), sum(sizes[: i + 1]))) for layer, i in places}


def hooked_twin(model: Transformer) -> "HookedTransformer":
    """TransformerLens' transformer with the same weights."""
    reference = hooked(model.config)
    weights = {key: torch.tensor(weight) for key, weight in state_dict(model).items()}
    assert not reference.load_state_dict(weights, strict=False).unexpected_keys
    return reference


def patch(node: Node, source, parts: dict[str, tuple[int, slice]]):
    """The hook that gives `node` its value in the source run."""
    if node.layer is None:
        name, part = "hook_embed", ...
    elif node.head is None:
        name, part = f"blocks.{node.layer}.mlp.hook_post", (..., parts[str(node)][1])
    else:
        name, part = f"blocks.{node.layer}.attn.hook_z", (slice(None), slice(None), node.head)

    def hook(value, hook):
        value = value.clone()
        value[part] = source[name][part]
        return value

    return name, hook


def run_hooked(reference: "HookedTransformer", tokens, swapped: Sequence[Node] = (), source=None):
    """Logits and activations by name, in torch; a swapped node takes its value from `source`."""
    with reference.hooks(fwd_hooks=[patch(node, source, vars(reference)["parts"]) for node in swapped]):
        logits, cache = reference.run_with_cache(torch.as_tensor(tokens).long())
    return {"logits": logits, **{name: cache[name] for name in cache if name.endswith(SITES)}}


def in_numpy(values) -> Named:
    return {key: value.detach().numpy() for key, value in values.items()}


def named(logits: jax.Array, activations: Activations, first: int = 0) -> dict[str, jax.Array]:
    """Our logits, and our activations from block `first` on, by TransformerLens' names."""
    assert activations.z is not None
    assert activations.stream is not None
    by_name = {"logits": logits} | ({} if activations.embed is None else {"hook_embed": activations.embed})
    for i in range(activations.z.shape[-4]):
        block = f"blocks.{first + i}"
        by_name[f"{block}.hook_resid_pre"] = activations.stream[..., i, :, :]
        by_name[f"{block}.attn.hook_z"] = activations.z[..., i, :, :, :]
        if activations.post is not None:
            by_name[f"{block}.mlp.hook_post"] = activations.post[..., i, :, :]
    return by_name


@jax.jit
def run_model(model: Transformer, tokens) -> dict[str, jax.Array]:
    return jax.vmap(lambda tokens: named(*model(tokens)))(tokens)


def assert_agree(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], rtol=0, atol=TOLERANCE, err_msg=key)


Writes = dict[str, torch.Tensor]
"""What each node wrote to the residual stream in one run, by its name: (seq, d_model)."""
Swapped = Callable[[str, str], Sequence[bool] | np.ndarray]


def by_reader_twin(model: Transformer) -> "HookedTransformer":
    """`hooked_twin`, in which every head's input and output has a hook of its own."""
    reference = hooked_twin(model)
    reference.set_use_split_qkv_input(True)
    reference.set_use_attn_result(True)
    return reference


def recorders(reference: "HookedTransformer", writes: Writes) -> list:
    """Hooks that note what is written into `writes`, in the order of the stream."""

    def embed(value, hook):
        writes["embed"] = value[0]

    def heads(value, hook):
        for i in range(value.shape[2]):
            writes[f"L{hook.layer()}H{i}"] = value[0, :, i]

    def mlp(value, hook):
        for name, (layer, neurons) in vars(reference)["parts"].items():
            if layer == hook.layer():
                writes[name] = value[0, :, neurons] @ reference.blocks[layer].mlp.W_out[neurons]

    blocks = range(reference.cfg.n_layers)
    mlps = [] if reference.cfg.attn_only else [(f"blocks.{i}.mlp.hook_post", mlp) for i in blocks]
    return [("hook_embed", embed), *((f"blocks.{i}.attn.hook_result", heads) for i in blocks), *mlps]


def written(reference: "HookedTransformer", tokens) -> Writes:
    """What each node writes in a run of one sample with nothing swapped."""
    writes: Writes = {}
    with torch.no_grad():
        reference.run_with_hooks(torch.as_tensor(tokens).long()[None], fwd_hooks=recorders(reference, writes))
    return writes


def path_patched(reference: "HookedTransformer", tokens, swapped: Swapped, there: Writes) -> np.ndarray:
    """Logits of one sample where each reader sees what swapped senders wrote in a source run (path patching).

    Each reader's input is moved by what the sender wrote there less what it wrote here; the stream itself is not.

    Args:
        reference: of `by_reader_twin`.
        swapped: whether a reader sees a sender's source value, at each position: (sender, reader) -> (seq,).
        there: what each sender wrote in its source run.
    """
    here: Writes = {}

    def moved(reader: str) -> torch.Tensor:
        moves = [torch.as_tensor(swapped(s, reader))[:, None] * (there[s] - own) for s, own in here.items()]
        return torch.stack(moves).sum(0)

    def heads(value, hook):
        return value + torch.stack([moved(f"L{hook.layer()}H{i}") for i in range(value.shape[2])], 1)[None]

    stream: list[torch.Tensor] = []

    def before_mlp(value, hook):
        stream.append(value)

    def mlp(value, hook):
        """What the neurons hold where those of each part see a stream of its own."""
        value = value.clone()
        for name, (layer, neurons) in vars(reference)["parts"].items():
            if layer == hook.layer():
                block: Any = reference.blocks[layer]
                read = block.ln2(stream[-1] + moved(name)[None])
                value[..., neurons] = block.mlp.act_fn(read @ block.mlp.W_in + block.mlp.b_in)[..., neurons]
        return value

    n = reference.cfg.n_layers
    hooks = [(f"blocks.{i}.hook_{part}_input", heads) for i in range(n) for part in "qkv"]
    if not reference.cfg.attn_only:
        hooks += [(f"blocks.{i}.hook_resid_mid", before_mlp) for i in range(n)]
        hooks += [(f"blocks.{i}.mlp.hook_post", mlp) for i in range(n)]
    hooks += [(f"blocks.{n - 1}.hook_resid_post", lambda value, hook: value + moved("logits")[None])]
    with torch.no_grad():
        given = torch.as_tensor(tokens).long()[None]
        return reference.run_with_hooks(given, fwd_hooks=[*hooks, *recorders(reference, here)])[0].numpy()
