"""A case's strings, labels and counterfactuals for those who train or test in torch."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Bool, Int, Shaped
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.model.nodes import Node

IGNORED = -100
"""The class of tokens that do not count, pads and task tokens: what torch's cross-entropy leaves out by default."""


class CaseTokenizer(PreTrainedTokenizerFast):
    """The Hugging Face tokenizer of a case's vocabulary, which refuses what the case cannot spell.

    A saved one that is loaded by AutoTokenizer spells alike, but does not say what is wrong with a text, and takes one
    of a combined case without BOS.
    """

    def __init__(self, case: Case):
        ids = {token: i for i, token in enumerate(case.vocabulary)}
        words = Tokenizer(models.WordLevel(ids))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        template = "$A" if case.tasks else "BOS $A"
        words.post_processor = processors.TemplateProcessing(template, special_tokens=[("BOS", ids["BOS"])])
        super().__init__(
            tokenizer_object=words,
            bos_token="BOS",
            pad_token="PAD",
            model_max_length=case.n_ctx,
            padding_side="right",
            clean_up_tokenization_spaces=False,
            name_or_path=case.name,
            **({} if case.tasks else {"add_bos_token": True}),
        )
        self.case = case

    @property
    def add_bos_token(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] (it cannot be set)
        """True: every text has its BOS. Of any other, TransformerLens looks on the hub for one that puts it first."""
        return True

    def _encode_plus(self, text, text_pair=None, **options):  # pyright: ignore[reportIncompatibleMethodOverride]
        split, whole = options.get("is_split_into_words", False), options.get("add_special_tokens", True)
        one = isinstance(text, str) or (split and not (text and isinstance(text[0], list)))
        for given in [text] if one else text:
            self._check(list(given) if split else given.split(), whole)
        if self.case.tasks and text == "":
            # BOS alone, as without tasks: from this TransformerLens sees that it is to put none before a text.
            text = "BOS"
        return super()._encode_plus(text, text_pair, **options)

    def _check(self, words: Sequence[str], whole: bool) -> None:
        """Raises ValueError where the case cannot spell the words, as a whole sample or as a part of one."""
        case, text = self.case, " ".join(words)
        if unknown := [word for word in words if word not in case.vocabulary]:
            raise UserError(f'"{unknown[0]}" is not a token of {case.name}; those are {" ".join(case.vocabulary)}')
        if not (whole and words):
            return
        if not case.tasks:
            if words[0] == "BOS" and len(words) > 1:
                raise UserError(f'"{text}" would have BOS twice: it is put before a text; write "{text[4:]}"')
        elif words[0] not in case.tasks:
            own = " ".join(word for word in words if word != "BOS")
            tasks = " or ".join(case.tasks)
            raise UserError(f'"{text}" does not begin with {tasks}; write, say, "{case.tasks[0]} BOS {own}"')
        elif words[1:2] != ["BOS"]:
            raise UserError(f'"{text}" has no BOS; write "{" ".join([words[0], "BOS", *words[1:]])}"')


def tokenizer(case: Case) -> CaseTokenizer:
    """A Hugging Face tokenizer of the case's vocabulary: words with spaces between, no unknown ones.

    It puts BOS before a text, as the case does. Where a text begins with the name of a task, it is to be spelled with
    its BOS, "left_greater: BOS ( )": templates of Hugging Face cannot put it second. TransformerLens takes it:
    `hooked.set_tokenizer(tokenizer(case))`, or `bridge.tokenizer = tokenizer(case)`.

    Raises (when it is called):
        UserError: a word is not a token, the task is not named, or BOS is missing, or there twice.
    """
    return CaseTokenizer(case)


class CaseDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples with their labels: item i is the tokens (seq,) and the labels (seq, *label) of sample i.

    Labels of tokens that do not count are -100 where labels are classes, nan where they are numbers.

    Attributes:
        tokens: Int[Tensor, "sample seq"].
        labels: Shaped[Tensor, "sample seq *label"].
    """

    def __init__(self, case: Case, samples: Int[np.ndarray | Array, "sample seq"]):
        self.case = case
        labels = jax.jit(jax.vmap(lambda tokens: case.circuit(tokens)[0]))(jnp.asarray(samples))
        self.tokens = _tensor(samples)
        self.labels = _counted(case, samples, labels)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.tokens[index], self.labels[index]


def draw_datasets(case: Case, n_train: int, n_validation: int, seed: int = 0) -> tuple[CaseDataset, CaseDataset]:
    """Samples to train and to validate on; no string is in both."""
    train, validation = case.draw(n_train, n_validation, np.random.default_rng(seed))
    return CaseDataset(case, train), CaseDataset(case, validation)


class Interchange(NamedTuple):
    """A batch of interchange interventions at one node, and what the circuit says that the answers become.

    Attributes:
        base, source: tokens, (batch, seq).
        node: whose value in the source's run takes the place of that in the base's; `node.hook` names its site
            (`case.config.hook(node)`, where MLPs are cut into parts).
        label: (batch, seq, *label); -100 or nan where a token does not count.
    """

    base: Tensor
    source: Tensor
    node: Node
    label: Tensor


def interchanges(
    dataset: CaseDataset, batch_size: int, *, nodes: Sequence[Node] | None = None, seed: int = 0
) -> Iterator[Interchange]:
    """One pass over a dataset: every sample is once a base and once a source, and each batch is at one random node.

    Args:
        nodes: to draw from; None for those that hold variables alone. At a node that holds none no label changes.
        seed: decides the pairs and the nodes.

    Raises:
        UserError: the transformer has no such node, or the batch size is not positive.
    """
    circuit = dataset.case.circuit
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    drawn_from = tuple(unit[0] for unit in circuit.units if len(unit) == 1) if nodes is None else tuple(nodes)
    masks = [circuit.nodes.mask([node]) for node in drawn_from]  # all of them, so that a wrong one is told at once
    return _interchanges(dataset, batch_size, drawn_from, masks, np.random.default_rng(seed))


def _interchanges(
    dataset: CaseDataset,
    batch_size: int,
    nodes: Sequence[Node],
    masks: Sequence[Bool[np.ndarray, " node"]],
    rng: np.random.Generator,
) -> Iterator[Interchange]:
    case = dataset.case
    counterfactual = _counterfactual(case)
    samples = dataset.tokens.numpy().astype(np.int32)
    bases, sources = (samples[rng.permutation(len(samples))] for _ in range(2))
    for at in range(0, len(samples), batch_size):
        base, source = bases[at : at + batch_size], sources[at : at + batch_size]
        if case.sources is not None:
            key = jax.random.key(int(rng.integers(2**31)))
            source = np.asarray(case.source_of(jnp.asarray(base), jnp.asarray(source), key))
        chosen = int(rng.integers(len(nodes)))
        labels = _counted(case, base, counterfactual(base, source, masks[chosen]))
        yield Interchange(_tensor(base), _tensor(source), nodes[chosen], labels)


def _counterfactual(case: Case) -> Callable[..., Shaped[Array, "batch seq *label"]]:
    """The labels of bases (batch, seq) when the masked nodes take their values on the sources."""

    def label(base, source, mask):
        return case.circuit(base, (mask, case.circuit(source)[1]))[0]

    return jax.jit(jax.vmap(label, (0, 0, None)))


def _counted(
    case: Case, samples: Int[np.ndarray | Array, "sample seq"], labels: Shaped[Array, "sample seq *label"]
) -> Tensor:
    """The labels, those of tokens that do not count taken out."""
    free = ~torch.from_numpy(np.array(case.counted_mask(jnp.asarray(samples))))
    found = torch.from_numpy(np.array(labels))
    if found.is_floating_point():
        found[free] = torch.nan
        return found
    return found.long().masked_fill(free, IGNORED)


def _tensor(samples: Int[np.ndarray | Array, "sample seq"]) -> Tensor:
    return torch.from_numpy(np.array(samples)).long()
