"""Weights as safetensors files, under TransformerLens' own names.

The path of a weight in the PyTree is its key in HookedTransformer's state dict, so nothing is renamed: in torch,
`model.load_state_dict(safetensors.torch.load_file(path), strict=False)` (not strict, because TransformerLens
keeps its causal masks in the state dict too).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from siitjax.base.errors import UserError, one_line
from siitjax.base.files import write_atomically
from siitjax.model.config import TransformerConfig, with_tuples
from siitjax.model.transformer import Transformer, init_transformer

Weights = Mapping[str, Shaped[np.ndarray, "..."]]
METADATA = "siitjax"
"""The entry of a file's metadata that holds, as JSON, the transformer's config and what else is known of it."""


def state_dict(model: Transformer) -> dict[str, Float[np.ndarray, "..."]]:
    """The weights by TransformerLens key, such as "blocks.0.attn.W_Q"."""
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return {_key(path): np.asarray(leaf) for path, leaf in leaves}


def weights_digest(model: Transformer) -> str:
    """Names a model's weights."""
    weights = state_dict(model)
    return hashlib.sha256(b"".join(weights[name].tobytes() for name in sorted(weights))).hexdigest()[:16]


def with_weights(model: Transformer, weights: Mapping[str, Float[np.ndarray, "..."]]) -> Transformer:
    """`model` with the weights of a state dict; keys that it does not have are left unread.

    Raises:
        UserError: a weight is missing, or has another shape.
    """

    def weight(path, own):
        key = _key(path)
        if key not in weights:
            raise UserError(f'the weights hold no "{key}"; they hold {", ".join(sorted(weights)) or "nothing"}')
        if weights[key].shape != own.shape:
            raise UserError(f'the weight "{key}" has shape {weights[key].shape}; this transformer needs {own.shape}')
        return jnp.asarray(weights[key], own.dtype)

    return jax.tree_util.tree_map_with_path(weight, model)


def save_weights(path: Path, model: Transformer, about: Mapping[str, Any] | None = None) -> None:
    """Writes the weights, with the transformer's config (and `about`) in the file's metadata; all or nothing."""
    # One entry, since safetensors writes several in no fixed order: the same weights make the same file.
    metadata = {METADATA: json.dumps({**(about or {}), "config": asdict(model.config)})}
    write_atomically(path, save(state_dict(model), metadata))


def load_weights(path: Path) -> Transformer:
    """The transformer that `save_weights` wrote.

    Raises:
        UserError: the file is torn, or another program's.
    """
    return read_weights(path)[0]


def read_weights(path: Path) -> tuple[Transformer, dict[str, Any]]:
    """The transformer that `save_weights` wrote, and what it wrote about it. Raises UserError as `load_weights`."""
    try:
        weights, metadata = _opened(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); train that member again") from None
    if METADATA not in metadata:
        raise UserError(f"{path} says nothing of its transformer; only files written by siitjax can be loaded alone")
    config, about = read_config(path, metadata)
    return with_weights(_blank(config), weights), about


def read_config(file: Path, metadata: Mapping[str, str]) -> tuple[TransformerConfig, dict[str, Any]]:
    """The transformer's config in a file's metadata, and all that `save_weights` wrote there. Raises UserError where
    this version cannot read it."""
    try:
        about = json.loads(metadata[METADATA])
        return TransformerConfig(**with_tuples(about["config"])), about
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} describes its transformer in a way that this version cannot read ({error})") from None


def read_tensors(file: Path) -> tuple[Weights, dict[str, str]]:
    """A safetensors file's tensors, and its metadata. Raises UserError where it is none, or torn."""
    try:
        return _opened(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({one_line(error)})") from None


def without_constants(weights: Weights) -> Weights:
    """The weights without the two constants of attention that TransformerLens keeps in its state dicts."""
    return {name: weight for name, weight in weights.items() if not name.endswith(("attn.mask", "attn.IGNORE"))}


def checked_model(config: TransformerConfig, weights: Weights, where: str) -> Transformer:
    """The transformer with these weights, which must be its own: each of its shape, finite, and none more.

    Raises:
        UserError: they are not; the message names all that are missing, unknown, of another shape or not finite.
    """
    blank = _blank(config)
    shapes = {_key(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(blank)}
    both = [name for name in shapes if name in weights]
    wrong = [f"{n} of shape {weights[n].shape}, not {shapes[n]}" for n in both if weights[n].shape != shapes[n]]
    infinite = [name for name in both if not np.isfinite(weights[name].astype(np.float32)).all()]
    found = {
        "lack": [name for name in shapes if name not in weights],
        "hold unknown": [name for name in weights if name not in shapes],
        "hold": wrong,
        "hold NaN or infinite numbers in": infinite,
    }
    if said := [f"{what} {', '.join(names)}" for what, names in found.items() if names]:
        raise UserError(f"the weights in {where} are not this transformer's: they {'; they '.join(said)}")
    return with_weights(blank, weights)


def _opened(file: Path) -> tuple[Weights, dict[str, str]]:
    with safe_open(file, "numpy") as opened:
        names = opened.keys()
        return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}


def _blank(config: TransformerConfig) -> Any:
    """A transformer's shapes."""
    return jax.eval_shape(lambda: init_transformer(config, key=jax.random.key(0)))


def _key(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
