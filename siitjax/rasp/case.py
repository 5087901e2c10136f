"""`siitjax.from_rasp`: a RASP program as a case."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxtyping import Array, Bool, Int

from siitjax.base.errors import UserError
from siitjax.causal.case import BOS, Case
from siitjax.causal.loss import CrossEntropy, SquaredError
from siitjax.model.nodes import Node
from siitjax.rasp.strings import Lengths

D_MODEL, D_HEAD = 32, 8
"""The transformer's sizes; `dataclasses.replace(case, d_model=64)` gives it others."""


def from_rasp(
    program: Any,
    vocab: Collection[Any],
    max_seq_len: int,
    *,
    name: str | None = None,
    causal: bool = False,
    min_seq_len: int | None = None,
    nodes: Mapping[str, Node] | None = None,
    tolerance: float = 0.05,
) -> Case:
    """A RASP program, as tracr takes it, as a case: its s-ops are the variables, and what it gives is the label.

    A variable's value at a position is the number of one of its `compute.values`, or `len(compute.values)` for RASP's
    None, and classes are these numbers; a numerical program has numbers as labels. The meaning is RASP's own, and
    that of tracr's compiled transformer wherever this computes the program. Under swaps too, where a categorical
    Aggregate selects several values: it has that of most positions. BOS has no label.

    Args:
        program: the s-op that is the output, of `tracr.rasp.rasp`.
        vocab: the values of the tokens.
        max_seq_len: tokens a string, BOS not counted.
        name: of the case; None for the program's own.
        causal: whether no position sees a later one; otherwise attention is bidirectional, as tracr's is.
        min_seq_len: tokens of the shortest strings, which are filled up with PADs, each length an equal share; None for
            strings of `max_seq_len` alone.
        nodes: where some of the variables are to live, by name; each other one lives on the first free head, or the
            first MLP, behind all that it reads.
        tolerance: how far a number may be off in a token that counts as right, where the program gives numbers.

    Raises:
        UserError: tracr is not installed, or cannot compile the program; a function of it fails; the vocabulary or a
            length cannot be used; a variable is to live where it cannot be computed.

    Example:
        >>> from tracr.compiler import lib
        >>> import siitjax
        >>> case = siitjax.from_rasp(lib.make_hist(), vocab="abc", max_seq_len=5)
        >>> [f"{v.name} {v.place}" for v in case.variables]
        ['hist_width L0H0', 'hist MLP0']
        >>> case.circuit(case.tokens("abaca"))[0].tolist()[1:]
        [3, 1, 3, 1, 3]
    """
    try:
        from siitjax.rasp.placement import placed
        from siitjax.rasp.program import read_program
        from siitjax.rasp.proof import check_agrees
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "siitjax":
            raise
        raise UserError(f"{error.name} is not installed; type: pip install 'siitjax[rasp]'") from None
    _check_vocabulary(vocab)
    shortest = max_seq_len if min_seq_len is None else min_seq_len
    if not 1 <= shortest <= max_seq_len:
        raise UserError(
            f"strings are to be of {shortest} to {max_seq_len} tokens; give 1 <= min_seq_len <= max_seq_len"
        )
    read = read_program(program, vocab, max_seq_len, causal=causal, shorter=shortest < max_seq_len)
    variables = placed(read.steps, nodes or {})
    used = [node for variable in variables for node in variable.nodes]
    heads = max((node.head + 1 for node in used if node.head is not None), default=0)
    case = Case(
        name=name or read.name,
        vocabulary=("BOS", "PAD", *map(str, read.letters)),
        variables=(*variables, read.label()) if read.numerical else variables,
        strata=Lengths(len(read.letters), shortest, max_seq_len),
        n_layers=1 + max(node.layer or 0 for node in used),
        d_model=max(D_MODEL, heads * D_HEAD),
        d_head=D_HEAD,
        n_outputs=1 if read.numerical else len(read.values) + 1,
        n_ctx=1 + max_seq_len,
        loss=SquaredError(tolerance) if read.numerical else CrossEntropy(),
        attention_dir="causal" if causal else "bidirectional",
        counted=not_bos,
    )
    check_agrees(case, read, causal)
    return case


def not_bos(tokens: Int[Array, " seq"]) -> Bool[Array, " seq"]:
    """The tokens of the program's own string, of a sample's own: BOS is none of it."""
    return tokens != BOS


def _check_vocabulary(vocab: Collection[Any]) -> None:
    """Raises UserError where the tokens cannot be called by what they are."""
    names = ["BOS", "PAD", *map(str, vocab)]
    if len(names) == 2:
        raise UserError('the vocabulary is empty; give the values of the tokens, such as "abc"')
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise UserError(
            f'two tokens are called "{twice[0]}", BOS and PAD counted; give each a name of its own, one value a token'
        )
