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

from siitjax.case import Case
from siitjax.nodes import Node

IGNORED = -100
"""The class of tokens that do not count, pads and task tokens: what torch's cross-entropy leaves out by default."""


def tokenizer(case: Case) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer of the case's vocabulary: words with spaces between, no unknown ones.

    It puts BOS before a text, as the case does, and TransformerLens' `set_tokenizer` takes it. Where a text begins with
    the name of a task, it is to be spelled with its BOS, "left_greater: BOS ( )": templates of Hugging Face cannot put
    it second, nor can TransformerLens.
    """
    ids = {token: i for i, token in enumerate(case.vocabulary)}
    words = Tokenizer(models.WordLevel(ids))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not case.tasks:
        words.post_processor = processors.TemplateProcessing("BOS $A", special_tokens=[("BOS", ids["BOS"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="BOS",
        pad_token="PAD",
        model_max_length=case.n_ctx,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        # Without these two, TransformerLens would look for another one that puts BOS first, on the hub.
        name_or_path=case.name,
        add_bos_token=not case.tasks,
    )


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
        node: whose value in the source's run takes the place of that in the base's; `node.hook` names its site.
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
        nodes: to draw from; None for those that hold a variable. At a node that holds none no label changes.
        seed: decides the pairs and the nodes.

    Raises:
        ValueError: the transformer has no such node, or the batch size is not positive.
    """
    circuit = dataset.case.circuit
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    drawn_from = circuit.nodes.named(circuit.circuit_mask) if nodes is None else tuple(nodes)
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
    free = ~torch.from_numpy(np.array(case.token_mask(jnp.asarray(samples))))
    found = torch.from_numpy(np.array(labels))
    if found.is_floating_point():
        found[free] = torch.nan
        return found
    return found.long().masked_fill(free, IGNORED)


def _tensor(samples: Int[np.ndarray | Array, "sample seq"]) -> Tensor:
    return torch.from_numpy(np.array(samples)).long()
