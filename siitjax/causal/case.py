"""A case: one task with its causal model, the transformer it is trained into, its data and its loss."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.causal.circuit import Circuit, Counterfactual, Variable
from siitjax.causal.data import BOS as BOS
from siitjax.causal.data import PAD as PAD
from siitjax.causal.data import Stratum, draw_split, every_string
from siitjax.causal.loss import CrossEntropy, Loss
from siitjax.causal.sources import Sources
from siitjax.model.checks import check_tokens
from siitjax.model.config import ActivationName, AttentionDirection, TransformerConfig

Counted = Literal["last"] | Callable[[Int[Array, " seq"]], Bool[Array, " seq"]]
LATER = {"heads": None, "attention_dir": "causal", "mlp_parts": 1}
"""What `TransformerConfig` did not have once, and how it was then."""


@runtime_checkable
class Mixture(Protocol):
    """Draws whole samples, as `Case.draw` and `Case.every` do, of so many tokens as `with_context` says."""

    def __call__(
        self, n_train: int, n_validation: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, "train seq"], Int[np.ndarray, "validation seq"]]: ...

    def every(self, limit: int) -> Int[np.ndarray, "sample seq"] | None:
        """Every string, or None where there are more than `limit`."""
        ...

    def with_context(self, n_ctx: int) -> "Mixture":
        """The same with strings that fill `n_ctx` tokens."""
        ...


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
        n_heads: heads a layer; None for d_model / d_head.
        act_fn, attn_only, layer_norm, attention_dir, mlp_parts: what else the transformer is, as `TransformerConfig`
            says; where attention is "bidirectional", variables may read later positions; where MLPs are cut into parts,
            variables live on those, as on `mlp(0, part=1)`.
        counterfactual: what a swap changes, "causal" or "frozen"; see `siitjax.causal.circuit`.
        tasks: of a combined case, the tokens that name a task; a sample begins with one, which carries no loss.
        drawn: draws whole samples, in the place of the strata.
        counted: the tokens whose labels are asked for: None for all of a sample's own; "last" for its last one; or a
            pure function of one sample's tokens (seq,) that says which (seq,). Losses and metrics are of these alone.
        sources: which source a base is swapped with, as `siitjax.causal.sources` says; None for any other sample.

    Raises:
        UserError: the vocabulary, the sizes or the circuit are not consistent.

    Example:
        >>> from dataclasses import replace
        >>> import siitjax
        >>> case = replace(siitjax.find_case("left_greater"), counted="last", n_ctx=4)
        >>> case.counted_mask(case.tokens("(()")).tolist()
        [False, False, False, True]
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
    n_heads: int | None = None
    act_fn: ActivationName = "relu"
    attn_only: bool = False
    layer_norm: bool = True
    attention_dir: AttentionDirection = "causal"
    mlp_parts: int | tuple[int, ...] = 1
    counted: Counted | None = None
    sources: Sources | None = None

    def __post_init__(self):
        if self.vocabulary[:2] != ("BOS", "PAD") or len(set(self.vocabulary)) != len(self.vocabulary):
            raise UserError(f'the vocabulary is {self.vocabulary}; it must begin "BOS", "PAD" and repeat nothing')
        if self.n_ctx < 2:
            raise UserError(f"n_ctx is {self.n_ctx}; it must be at least 2, BOS and one token")
        if not self.strata and self.drawn is None:
            raise UserError("the case lists no strata; it needs at least one sampler of strings")
        tokens = jax.ShapeDtypeStruct((self.n_ctx,), jnp.int32)
        label = jax.eval_shape(lambda tokens: self.circuit(tokens)[0], tokens)
        expected = (self.n_ctx, *self.loss.label_shape(self.n_outputs))
        if label.shape != expected:
            raise UserError(f"the label has shape {label.shape}, but {self.loss} takes {expected}, tokens first")
        if label.dtype.kind not in self.loss.takes:
            kinds = "numbers, of a float dtype" if "f" in self.loss.takes else "classes, of an integer dtype or bool"
            raise UserError(f"the label is of {label.dtype}, but {self.loss} takes {kinds}")
        self._check_counted(tokens)
        if self.sources is not None:
            source = jax.eval_shape(self.sources, tokens, tokens, jax.random.key(0))
            if (source.shape, source.dtype.kind) != (tokens.shape, "i"):
                raise UserError(
                    f"sources gives {source.dtype} of shape {source.shape} for a base of {self.n_ctx} tokens; it must "
                    "give the tokens of a sample as long"
                )

    def _check_counted(self, tokens: jax.ShapeDtypeStruct) -> None:
        if isinstance(self.counted, str):
            check_choice("counted", self.counted, ("last",), "It may also be a function of a sample's tokens")
        elif self.counted is not None:
            mask = jax.eval_shape(self.counted, tokens)
            if (mask.shape, mask.dtype) != (tokens.shape, bool):
                raise UserError(
                    f"counted gives {mask.dtype} of shape {mask.shape} for {self.n_ctx} tokens; it must give a bool of "
                    f"shape {tokens.shape}, whether each token counts"
                )

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
            act_fn=self.act_fn,
            attn_only=self.attn_only,
            layer_norm=self.layer_norm,
            init_gain=self.init_gain,
            heads=self.n_heads,
            attention_dir=self.attention_dir,
            mlp_parts=self.mlp_parts,
        )

    @cached_property
    def circuit(self) -> Circuit:
        """The causal model on this transformer's nodes."""
        return Circuit(self.variables, self.config.nodes, self.counterfactual)

    def describe(self) -> dict[str, Any]:
        """What decides how it is trained and measured, as JSON has it.

        What older versions did not have stands in it only where it is not as it was in them, so that their files fit.
        """
        listed = lambda x: list(x) if isinstance(x, tuple) else x
        shape = {name: listed(x) for name, x in asdict(self.config).items() if x != LATER.get(name, ...)}
        return {
            "name": self.name,
            "vocabulary": list(self.vocabulary),
            "circuit": {v.name: v.place for v in self.variables},
            "loss": repr(self.loss),
            "counterfactual": self.counterfactual,
            **({} if self.counted is None else {"counted": self.counts}),
            **({} if self.sources is None else {"sources": "the case's own"}),
            **shape,
        }

    def with_context(self, n_ctx: int) -> "Case":
        """The same case on samples of `n_ctx` tokens; where it is of several tasks, all of them are drawn so long."""
        return replace(self, n_ctx=n_ctx, drawn=self.drawn and self.drawn.with_context(n_ctx))

    def check_fits(self, config: TransformerConfig, *samples: Int[Array | np.ndarray, "_ seq"]) -> None:
        """Whether a transformer can be asked for this case's labels, on these samples.

        Raises:
            UserError: it has other nodes, tokens or outputs, or too short a context, or the samples are not of it.
        """
        same = ("n_layers", "n_heads", "n_parts", "attn_only", "attention_dir", "d_vocab", "d_vocab_out")
        pairs = [(name, getattr(config, name), getattr(self.config, name)) for name in same]
        differ = [f"{name} {theirs}, not {ours}" for name, theirs, ours in pairs if theirs != ours]
        if config.n_ctx < self.n_ctx:
            differ.append(f"n_ctx {config.n_ctx}, less than {self.n_ctx}")
        if differ:
            raise UserError(
                f"the transformer does not fit the case {self.name}: it has {'; '.join(differ)}; "
                "give the case that it was trained on"
            )
        for each in samples:
            check_tokens(each, config.d_vocab, config.n_ctx)

    def task_of(self, variable: str) -> int | None:
        """The part that declares a variable of a combined case, whose name begins with the part's; None where the
        combined case itself does, and of a single task."""
        owner = f"{variable.partition('.')[0]}:"
        return self.tasks.index(owner) if owner in self.tasks else None

    def token_mask(self, tokens: Int[Array, "*batch seq"]) -> Bool[Array, "*batch seq"]:
        """A sample's own tokens: pads and task tokens are free."""
        first_task = len(self.vocabulary) - len(self.tasks)
        return (tokens != PAD) & (tokens < first_task)

    def counted_mask(self, tokens: Int[Array, "*batch seq"]) -> Bool[Array, "*batch seq"]:
        """The tokens that losses and metrics count: a sample's own, or those of them that `counted` says."""
        own, counted = self.token_mask(tokens), self.counted
        if counted is None:
            return own
        if isinstance(counted, str):
            return jnp.vectorize(_is_last, signature="(s)->(s)")(own)
        return own & jnp.vectorize(counted, signature="(s)->(s)")(tokens)

    def source_of(
        self, base: Int[Array, "sample seq"], other: Int[Array, "sample seq"], key: PRNGKeyArray
    ) -> Int[Array, "sample seq"]:
        """The source of each base: the other sample, or what the case's own `sources` makes of both."""
        if self.sources is None:
            return other
        return jax.vmap(self.sources)(base, other, jax.random.split(key, len(base))).astype(base.dtype)

    @property
    def counts(self) -> str:
        """What is counted, as tables call it."""
        return "tokens" if self.counted is None else f"{'last' if self.counted == 'last' else 'counted'} tokens"

    def draw(
        self, n_train: int, n_validation: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, "train seq"], Int[np.ndarray, "validation seq"]]:
        """Samples, BOS first, to train and to validate on; no string is in both.

        Raises:
            UserError: a stratum draws what is no string of this vocabulary, or too few strings.
        """
        if self.drawn is not None:
            train, validation = self.drawn(n_train, n_validation, rng)
            for samples in (train, validation):
                check_tokens(samples, len(self.vocabulary), self.n_ctx)
            return train, validation
        strata, length = self._strata(), self.n_ctx - 1
        train, validation = draw_split(strata, length, n_train, n_validation, rng, vocab=len(self.vocabulary))
        return _with_bos(train), _with_bos(validation)

    def _strata(self) -> tuple[Stratum, ...]:
        return self.strata(self.n_ctx - 1) if callable(self.strata) else self.strata

    def tokens(self, string: Sequence[str]) -> Int[Array, " seq"]:
        """The sample that `string` spells, BOS put before it, or after its first token where that names the task.

        Raises:
            UserError: something is not in the vocabulary, the task is not named, or the sample is longer than n_ctx.
        """
        if unknown := [s for s in string if s not in self.vocabulary]:
            raise UserError(f'"{unknown[0]}" is not a token of {self.name}; those are {" ".join(self.vocabulary)}')
        if self.tasks and (not string or string[0] not in self.tasks):
            raise UserError(f"the first token must name the task; one of {' '.join(self.tasks)}")
        n = min(len(self.tasks), 1)
        if len(string) + 1 > self.n_ctx:
            raise UserError(
                f'"{" ".join(string)}" has {len(string)} tokens; {self.name} takes {self.n_ctx - 1} at most, and BOS'
            )
        named = [self.vocabulary.index(s) for s in string]
        return jnp.array([*named[:n], BOS, *named[n:]], jnp.int32)

    def every(self, limit: int) -> Int[np.ndarray, "sample seq"] | None:
        """Every sample that may be drawn, of each task that has no more than `limit`; None where none has so few.

        Raises:
            UserError: a stratum does not say which strings it draws; see `siitjax.causal.data.Listed`.
        """
        if self.drawn is not None:
            return self.drawn.every(limit)
        strings = every_string(self._strata(), self.n_ctx - 1, limit)
        return None if strings is None else _with_bos(strings)


def _is_last(own: Bool[Array, " seq"]) -> Bool[Array, " seq"]:
    at = jnp.arange(len(own))
    return own & (at == jnp.where(own, at, -1).max())


def _with_bos(strings: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n seq"]:
    return np.pad(strings, ((0, 0), (1, 0)), constant_values=BOS)
