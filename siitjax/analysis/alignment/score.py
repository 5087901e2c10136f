"""How well alignments separate a variable from the node's others: interchange accuracy on pairs."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from siitjax.analysis.alignment.alignments import Alignment
from siitjax.analysis.alignment.exam import Exam
from siitjax.siit.metrics import Tally


class Scores(eqx.Module):
    """Tokens that are answered as the causal model does with the variable alone swapped.

    Attributes:
        every: of all tokens that count.
        caused: of those whose label the swap changes ("cause" in RAVEL, Huang et al. 2024).
        isolated: of those whose label it leaves, while a swap of the node's other variables changes it ("isolation"
            there); see `siitjax.analysis.alignment.exam.Exam`.
    """

    every: Tally
    caused: Tally
    isolated: Tally

    @property
    def balanced(self) -> Float[Array, " lane"]:
        """The mean of the shares of caused and isolated tokens; 0.5 for what does nothing, and for what swaps all.

        Where no token is isolated, the share of the caused ones.
        """
        caused, isolated = (x.right / jnp.maximum(x.of, 1) for x in (self.caused, self.isolated))
        return jnp.where(self.isolated.of > 0, (caused + isolated) / 2, caused)


@jax.jit
def score(exam: Exam, alignments: Alignment, variables: Int[Array, " lane"]) -> Scores:
    """Scores alignments, one after the other.

    Args:
        alignments: with a leading lane axis.
        variables: which of the exam's each is to be.

    Example:
        >>> import jax.numpy as jnp, siitjax
        >>> from siitjax.analysis.alignment.alignments import Projection
        >>> from siitjax.analysis.alignment.exam import prepare_exam, variables_at
        >>> from siitjax.analysis.discovery.pairs import draw_pairs
        >>> trained = siitjax.load("left_greater")
        >>> case, node = trained.case, siitjax.mlp(0)
        >>> exam = prepare_exam(trained.model, case, node, variables_at(case, node), draw_pairs(case, 100))
        >>> score(exam, Projection(jnp.eye(48)[None]), jnp.array([0])).balanced.tolist()
        [1.0]
    """

    def one(lane):
        alignment, variable = lane
        logits = exam.answers(jnp.arange(len(exam.base)), alignment(exam.here, exam.there))
        right = exam.case.loss.correct(logits, exam.labels[variable])
        tally = lambda group: Tally((right & group).sum(), group.sum())
        return Scores(*map(tally, (exam.counted, exam.caused[variable], exam.isolated[variable])))

    return jax.lax.map(one, (alignments, variables))
