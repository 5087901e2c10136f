"""The transformer as a flax.nnx.Module: Flax holds the weights, and what they compute is written once, in
`siitjax.model.transformer`."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from siitjax.base.errors import UserError
from siitjax.causal.registry import locate
from siitjax.io.trained import Trained, read_model
from siitjax.model.config import TransformerConfig
from siitjax.model.transformer import Activations, Swap, Transformer, init_transformer

Source = Transformer | Trained | Path | str
"""A transformer; what `siitjax.load` gives; the path of a model's folder or weights file; or a shipped model's name."""


class Layer(nnx.Module):
    """A part of the transformer: its weights are of its part of ours, under the same names.

    A LayerNorm or an MLP that the transformer does not have is None.
    """

    def __init__(self, part: eqx.Module):
        for field in fields(part):
            if not field.metadata.get("static"):
                setattr(self, field.name, _held(getattr(part, field.name)))


def _held(part: Any) -> Any:
    """A part of ours as Flax holds it."""
    if isinstance(part, tuple):
        return nnx.List([_held(each) for each in part])
    if isinstance(part, eqx.Module):
        return Layer(part)
    return None if part is None else nnx.Param(part)


class NNXTransformer(Layer):
    """A transformer whose weights Flax holds; `to_nnx` makes it.

    A weight's path in `nnx.state` is its name with slashes: blocks/0/attn/W_Q. `nnx.jit`, `nnx.grad`, `nnx.split` and
    Flax's optimizers take it as they take any module.

    Attributes:
        config: its shape.
    """

    def __init__(self, model: Transformer):
        super().__init__(model)
        self.config: TransformerConfig = model.config

    def __call__(
        self, tokens: Int[Array, " seq"], swap: Swap | None = None
    ) -> tuple[Float[Array, "seq vocab_out"], Activations]:
        """Logits and activations of one sample, under a swap of nodes or edges if one is given.

        Raises:
            UserError: as `siitjax.Transformer` does; or the weights are not of its shape any more.
        """
        return from_nnx(self)(tokens, swap)


def to_nnx(source: Source) -> NNXTransformer:
    """The Flax module of a transformer, or of where one is.

    Its logits and activations are ours to the bit, under any swap.

    Raises:
        UserError: it is no model.

    Example:
        >>> import jax.numpy as jnp, siitjax.flax
        >>> from flax import nnx
        >>> model = siitjax.flax.to_nnx("left_greater")
        >>> logits, activations = model(jnp.array([0, 2, 2, 3]))
        >>> logits.shape
        (4, 3)
        >>> len(jax.tree.leaves(nnx.state(model, nnx.Param)))
        22
        >>> nnx.state(model)["blocks"][0]["attn"]["W_Q"][...].shape
        (4, 12, 3)
    """
    if isinstance(source, Trained):
        source = source.model
    return NNXTransformer(source if isinstance(source, Transformer) else read_model(locate(source)))


def from_nnx(module: NNXTransformer) -> Transformer:
    """A Flax module's transformer as one of ours, with the weights that the module has now.

    Raises:
        UserError: it is no module of `to_nnx`, or a weight is gone or of another shape.

    Example:
        >>> import siitjax.flax
        >>> ours = siitjax.load("left_greater").model
        >>> again = siitjax.flax.from_nnx(siitjax.flax.to_nnx(ours))
        >>> bool((again.unembed.W_U == ours.unembed.W_U).all())
        True
    """
    if not isinstance(module, NNXTransformer):
        raise UserError(f"from_nnx takes a module that to_nnx made, not {type(module).__name__}")
    blank = jax.eval_shape(lambda: init_transformer(module.config, key=jax.random.key(0)))

    def weight(path: jax.tree_util.KeyPath, own: jax.ShapeDtypeStruct) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        found: Any = module
        for key in path:
            found = found[key.idx] if isinstance(key, jax.tree_util.SequenceKey) else getattr(found, key.name, None)
            if found is None:
                raise UserError(f'the module has no weight "{name}"; make it by to_nnx, and change only what is in it')
        if found.shape != own.shape:
            raise UserError(f'the module\'s weight "{name}" has shape {found.shape}; its config needs {own.shape}')
        return found[...]

    return jax.tree_util.tree_map_with_path(weight, blank)
