"""A case: one task with its causal model, the transformer it is trained into, its data and its loss."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from siitjax.circuit import Circuit, Counterfactual, Variable
from siitjax.data import Stratum, draw_split
from siitjax.errors import UserError
from siitjax.loss import CrossEntropy, Loss
from siitjax.transformer import TransformerConfig

BOS, PAD = 0, 1
"""Every vocabulary begins with these two."""


@runtime_checkable
class Mixture(Protocol):
    """Draws whole samples, as `Case.draw` and `Case.every` do."""

    def __call__(
        self, n_train: int, n_validation: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, "train seq"], Int[np.ndarray, "validation seq"]]: ...

    def every(self, limit: int) -> Int[np.ndarray, "sample seq"] | None: ...


@dataclass(frozen=True)
class Case:
    """A task, declared.

    Attributes:
        name: what the command line calls it.
        vocabulary: the tokens' names; the first two are "BOS" and "PAD".
        variables: the causal model; the last one is the label of each token.
        strata: samplers of the string that follows BOS, or the function that gives them for its length; each gives
            an equal share of the data.
        n_layers, d_model, d_head, d_mlp: the size of the transformer; d_mlp None for 4 d_model.
        n_outputs: classes, or numbers a token.
        n_ctx: tokens a sample, BOS included.
        loss: cross-entropy for classes, squared error for numbers.
        init_gain: gain of the Xavier normal initialisation.
        counterfactual: what a swap changes, "causal" or "frozen"; see `siitjax.circuit`.
        tasks: of a combined case, the tokens that name a task; a sample begins with one, which carries no loss.
        drawn: draws whole samples, in the place of the strata.

    Raises:
        UserError: the vocabulary, the sizes or the circuit are not consistent.
    """

    name: str
    vocabulary: tuple[str, ...]
    variables: tuple[Variable, ...]
    strata: tuple[Stratum, ...] | Callable[[int], tuple[Stratum, ...]]
    n_layers: int
    d_model: int
    d_head: int
    n_outputs: int
    n_ctx: int = 15
    d_mlp: int | None = None
    loss: Loss = field(default_factory=CrossEntropy)
    init_gain: float = 1.0
    counterfactual: Counterfactual = "causal"
    tasks: tuple[str, ...] = ()
    drawn: Mixture | None = None

    def __post_init__(self):
        if self.vocabulary[:2] != ("BOS", "PAD") or len(set(self.vocabulary)) != len(self.vocabulary):
            raise UserError(f'the vocabulary is {self.vocabulary}; it must begin "BOS", "PAD" and repeat nothing')
        if self.n_ctx < 2:
            raise UserError(f"n_ctx is {self.n_ctx}; it must be at least 2, BOS and one token")
        if not self.strata and self.drawn is None:
            raise UserError("the case lists no strata; it needs at least one sampler of strings")
        tokens = jax.ShapeDtypeStruct((self.n_ctx,), jnp.int32)
        label = jax.eval_shape(lambda tokens: self.circuit(tokens)[0], tokens).shape
        expected = (self.n_ctx, *self.loss.label_shape(self.n_outputs))
        if label != expected:
            raise UserError(f"the label has shape {label}, but {self.loss} takes {expected}, tokens first")

    @cached_property
    def config(self) -> TransformerConfig:
        """The shape of the transformer that the case is trained into."""
        return TransformerConfig(
            n_layers=self.n_layers,
            d_model=self.d_model,
            d_head=self.d_head,
            n_ctx=self.n_ctx,
            d_vocab=len(self.vocabulary),
            d_vocab_out=self.n_outputs,
            d_mlp=self.d_mlp,
            init_gain=self.init_gain,
        )

    @cached_property
    def circuit(self) -> Circuit:
        """The causal model on this transformer's nodes."""
        return Circuit(self.variables, self.config.nodes, self.counterfactual)

    def describe(self) -> dict[str, Any]:
        """What decides how it is trained and measured, as JSON has it."""
        return {
            "name": self.name,
            "vocabulary": list(self.vocabulary),
            "circuit": {v.name: str(v.node) if v.node else None for v in self.variables},
            "loss": repr(self.loss),
            "counterfactual": self.counterfactual,
            **asdict(self.config),
        }

    def with_context(self, n_ctx: int) -> "Case":
        """The same case on samples of `n_ctx` tokens."""
        return replace(self, n_ctx=n_ctx)

    def token_mask(self, tokens: Int[Array, "*batch seq"]) -> Bool[Array, "*batch seq"]:
        """A sample's own tokens: those that are counted in losses and metrics. Pads and task tokens are free."""
        first_task = len(self.vocabulary) - len(self.tasks)
        return (tokens != PAD) & (tokens < first_task)

    def draw(
        self, n_train: int, n_validation: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, "train seq"], Int[np.ndarray, "validation seq"]]:
        """Samples, BOS first, to train and to validate on; no string is in both."""
        if self.drawn is not None:
            return self.drawn(n_train, n_validation, rng)
        length = self.n_ctx - 1
        strata = self.strata(length) if callable(self.strata) else self.strata
        train, validation = draw_split(strata, length, n_train, n_validation, rng)
        return _with_bos(train), _with_bos(validation)

    def tokens(self, string: Sequence[str]) -> Int[Array, " seq"]:
        """The sample that `string` spells, BOS put before it, or after its first token where that names the task.

        Raises:
            UserError: something is not in the vocabulary, or the task is not named.
        """
        if unknown := [s for s in string if s not in self.vocabulary]:
            raise UserError(f'"{unknown[0]}" is not a token of {self.name}; those are {" ".join(self.vocabulary)}')
        if self.tasks and (not string or string[0] not in self.tasks):
            raise UserError(f"the first token must name the task; one of {' '.join(self.tasks)}")
        n = min(len(self.tasks), 1)
        named = [self.vocabulary.index(s) for s in string]
        return jnp.array([*named[:n], BOS, *named[n:]], jnp.int32)

    def every(self, limit: int) -> Int[np.ndarray, "sample seq"] | None:
        """Every sample there is, of each task that has no more than `limit`; None where none has so few."""
        if self.drawn is not None:
            return self.drawn.every(limit)
        letters, length = len(self.vocabulary) - 2, self.n_ctx - 1
        if letters**length > limit:
            return None
        strings = np.indices((letters,) * length, np.int32).reshape(length, -1).T + 2
        return _with_bos(strings)


def _with_bos(strings: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n seq"]:
    return np.pad(strings, ((0, 0), (1, 0)), constant_values=BOS)
