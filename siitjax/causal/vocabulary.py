"""A transformer of another vocabulary, such as one found in the wild, as one that reads and answers a case's tokens."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from siitjax.base.errors import UserError
from siitjax.causal.case import Case
from siitjax.model.transformer import Embed, PosEmbed, Transformer, Unembed


def with_vocabulary(
    model: Transformer, case: Case, ids: Sequence[int], outputs: Sequence[int] | None = None
) -> Transformer:
    """The transformer with those of its tokens alone that a case has, in the case's order, and as long a context.

    What it computes of these tokens is unchanged, and its logits are those of the outputs named.

    Args:
        model: the transformer, of any vocabulary.
        case: the task; its layers and heads are the transformer's.
        ids: for each token of the case's vocabulary, the transformer's own number of it.
        outputs: for each of the case's classes, the transformer's own output; None where the classes are the tokens.

    Raises:
        UserError: there are not as many as the case has, the transformer lacks one, or it does not fit the case
            otherwise.

    Example:
        >>> import siitjax
        >>> model, case = siitjax.load("0").model, siitjax.find_case("duplicate_remover")
        >>> case.vocabulary
        ('BOS', 'PAD', 'a', 'b', 'c')
        >>> other = with_vocabulary(model, case, ids=[0, 1, 4, 3, 2])  # its "a" is our "c"
        >>> bool((other.embed.W_E[2] == model.embed.W_E[4]).all())
        True
    """
    config = model.config
    if outputs is None:
        if case.n_outputs != len(case.vocabulary):
            raise UserError(
                f"the case {case.name} has {case.n_outputs} outputs and {len(case.vocabulary)} tokens, so that its "
                "classes are not its tokens; give outputs, the transformer's own output of each"
            )
        outputs = ids
    for name, given, n, has in (
        ("ids", ids, len(case.vocabulary), config.d_vocab),
        ("outputs", outputs, case.n_outputs, config.d_vocab_out),
    ):
        if len(given) != n:
            raise UserError(f"{name} has {len(given)} numbers, but the case {case.name} has {n}; give one for each")
        if wrong := [i for i in given if not 0 <= i < has]:
            raise UserError(f"{name} has the number {wrong[0]}, but the transformer has {has}, counted from 0")
    shape = replace(config, d_vocab=len(ids), d_vocab_out=len(outputs), n_ctx=min(config.n_ctx, case.n_ctx))
    case.check_fits(shape)
    chosen, answers = np.asarray(ids), np.asarray(outputs)
    return replace(
        model,
        embed=Embed(model.embed.W_E[chosen]),
        pos_embed=PosEmbed(model.pos_embed.W_pos[: shape.n_ctx]),
        unembed=Unembed(model.unembed.W_U[:, answers], model.unembed.b_U[answers]),
        config=shape,
    )
