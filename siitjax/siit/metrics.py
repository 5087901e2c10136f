"""Accuracy, IIA, SIIA and the honest variants: counted on the device in whole numbers, divided on the host.

`Metrics` are the counts, which a compiled function gives; `Shares` are what they come to, which is shown, compared and
kept. A share in float32 would be wrong by a token in a few million, and in half of all cases in its last digit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from siitjax.base.share import exact

Counted = Int[Array, "*swap"] | Int[np.ndarray, "*swap"]


class Tally(eqx.Module):
    """What was right under each of some swaps, and of how many; those of the same swaps may be added up, leaf by leaf.

    Attributes:
        right: how many were right; at most 2**31 - 1 where it was counted on the device.
        of: how many there were.
    """

    right: Counted
    of: Counted

    @property
    def share(self) -> Fraction:
        """The share of all swaps together, which is the mean of theirs where each was counted on as many.

        Raises:
            ZeroDivisionError: there was nothing to count.
        """
        return Fraction(int(np.sum(self.right)), int(np.sum(self.of)))

    @property
    def shares(self) -> tuple[Fraction | None, ...]:
        """The share of each swap along the one axis; None where there was nothing to count."""
        return tuple(self.at(i).share if self.of[i] else None for i in range(len(self.of)))

    def at(self, index: Any) -> "Tally":
        """That of the swaps at this index."""
        return jax.tree.map(lambda x: x[index], self)


class EdgeMetrics(eqx.Module):
    """What was right under swaps of every kind, in the order of `siitjax.siit.edge_metrics.kinds`.

    Attributes:
        tokens: of all tokens.
        changed: of the tokens whose label the swap changed.
    """

    tokens: Tally
    changed: Tally


class Errors(eqx.Module):
    """Absolute errors of numeric labels, summed over the tokens that count; in the label's unit, averaged over a
    token's numbers.

    Attributes:
        base: with nothing swapped.
        node: when a circuit node is swapped, one at a time.
        unused: when an unused node is swapped, one at a time.
    """

    base: Float[Array, "*epoch"] | Float[np.ndarray, "*epoch"] | np.floating
    node: Float[Array, "*epoch node"] | Float[np.ndarray, "*epoch node"]
    unused: Float[Array, "*epoch unused"] | Float[np.ndarray, "*epoch unused"]


class Metrics(eqx.Module):
    """Answers counted over a validation set; those of the same case may be added up, leaf by leaf.

    Attributes:
        base: tokens answered right, the label being the circuit's, with nothing swapped.
        node: tokens answered as the circuit says when a circuit node is swapped, one at a time.
        changed: of these, the tokens whose label that swap changed.
        whole: samples that are right at every token when a circuit node is swapped, one at a time.
        unused: tokens answered right, the label being the base's, when an unused node is swapped, one at a time.
        joint: the same, all unused nodes swapped together.
        subset: the same, a random subset of them swapped together, each with probability 1/2, drawn for each sample.
        edges: what was right under swaps of every kind; None where that was not measured.
        errors: how far numbers were off; None where labels are classes.
    """

    base: Tally
    node: Tally
    changed: Tally
    whole: Tally
    unused: Tally
    joint: Tally
    subset: Tally
    edges: EdgeMetrics | None = None
    errors: Errors | None = None

    @property
    def perfect(self) -> Bool[Array, "*epoch"] | Bool[np.ndarray, "*epoch"] | np.bool_:
        """Whether accuracy, IIA and SIIA, and edges, count no token wrong: of whole numbers, for compiled code."""
        base, node, unused = (x.right == x.of for x in (self.base, self.node, self.unused))
        all_right = base & node.all(-1) & unused.all(-1)
        return (
            all_right if self.edges is None else all_right & (self.edges.tokens.right == self.edges.tokens.of).all(-1)
        )

    def at(self, index: Any) -> "Metrics":
        """Those of one epoch, where every count has an axis for them; or of one lane's epoch, where it has two."""
        return jax.tree.map(lambda x: x[index], self)


@dataclass(frozen=True)
class Shares:
    """What metrics come to: exact shares, from 0 to 1; on changed labels None where no label changed.

    They are compared exactly, with `Fraction`s: see `siitjax.base.share`.

    Attributes:
        accuracy: tokens answered right, nothing swapped.
        iia: interchange intervention accuracy, the mean over the circuit's nodes, swapped one at a time
            (Geiger et al. 2022, section 3).
        changed_iia: the same on the tokens whose label the swap changed, the mean over the nodes that change any.
        worst_changed_iia: the least of those nodes; None, as is the mean, where none changes any.
        sequence_iia: samples that are right at every token, the mean over the circuit's nodes.
        siia: strict IIA: tokens answered right, the label being the base's, the mean over the unused nodes, swapped one
            at a time (Gupta et al. 2024, section 3). 1 where there is no unused node.
        joint_siia: the same, all unused nodes swapped together.
        subset_siia: the same, a random subset of them swapped together.
        node_iia: IIA of each circuit node.
        node_changed_iia: IIA on changed labels of each circuit node.
        node_changed: how many labels each circuit node's swap changed.
        node_siia: SIIA of each unused node.
        perfect: whether accuracy, IIA and SIIA count no token wrong.
        counts: what they are shares of; None where a file of an older version kept only the shares, in float32: they
            are then what its decimals say, but for the changed labels, of which the counts are known.
        mean_error: where labels are numbers, the mean absolute error of a token with nothing swapped, in the label's
            unit.
        node_mean_error: the same when each circuit node is swapped; empty where labels are classes.
    """

    accuracy: Fraction
    iia: Fraction
    changed_iia: Fraction | None
    worst_changed_iia: Fraction | None
    sequence_iia: Fraction
    siia: Fraction
    joint_siia: Fraction
    subset_siia: Fraction
    node_iia: tuple[Fraction, ...]
    node_changed_iia: tuple[Fraction | None, ...]
    node_changed: tuple[int, ...]
    node_siia: tuple[Fraction, ...]
    perfect: bool
    counts: Metrics | None
    mean_error: float | None = None
    node_mean_error: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON has them: the shares in float64, null where there is none, and beside them the exact counts."""
        listed = {name: getattr(self, name) for name in NAMES}
        counts = None if self.counts is None else _nested(self.counts)
        errors = {} if self.mean_error is None else {name: _number(getattr(self, name)) for name in ERRORS}
        return {**{name: _number(value) for name, value in listed.items()}, **errors, "counts": counts}


ERRORS = ("mean_error", "node_mean_error")
"""What there is of numeric labels alone."""
NAMES = tuple(f.name for f in fields(Shares) if f.name not in ("counts", *ERRORS))


def shares(metrics: Metrics) -> Shares:
    """What the metrics of one measurement come to.

    Raises:
        ZeroDivisionError: nothing was measured, as in an epoch that was not run.
    """
    changed = metrics.changed.shares
    each = lambda tally: tuple(tally.at(i).share for i in range(len(tally.of)))
    errors = metrics.errors
    return Shares(
        accuracy=metrics.base.share,
        iia=metrics.node.share,
        changed_iia=mean(changed),
        worst_changed_iia=min(_known(changed), default=None),
        sequence_iia=metrics.whole.share,
        siia=metrics.unused.share if len(metrics.unused.of) else Fraction(1),
        joint_siia=metrics.joint.share,
        subset_siia=metrics.subset.share,
        node_iia=each(metrics.node),
        node_changed_iia=changed,
        node_changed=tuple(map(int, metrics.changed.of)),
        node_siia=each(metrics.unused),
        perfect=bool(metrics.perfect),
        counts=metrics,
        mean_error=None if errors is None else float(errors.base) / int(metrics.base.of),
        node_mean_error=() if errors is None else _per_token(errors.node, metrics.node),
    )


def _per_token(errors: Float[Array | np.ndarray, " node"], tokens: Tally) -> tuple[float, ...]:
    return tuple((np.asarray(errors, float) / np.asarray(tokens.of)).tolist())


def read_shares(found: Mapping[str, Any]) -> Shares:
    """What `Shares.to_json` gave, of this version or of one that kept no counts.

    Raises:
        KeyError: one is missing.
    """
    if found.get("counts") is not None:
        counts = dict(found["counts"])
        edges = counts.pop("edges", None)
        far = counts.pop("errors", None)
        tallies = {name: _tally(found) for name, found in counts.items()}
        off = None if far is None else Errors(**{name: np.asarray(sums, float) for name, sums in far.items()})
        read = None if edges is None else EdgeMetrics(_tally(edges["tokens"]), _tally(edges["changed"]))
        return shares(Metrics(**tallies, edges=read, errors=off))
    one = lambda x: None if x is None else exact(np.float32(x))
    read = {name: found[name] for name in NAMES}
    old: dict[str, Any] = {name: tuple(map(one, x)) if isinstance(x, list) else one(x) for name, x in read.items()}
    changed = tuple(map(_whole, old["node_changed_iia"], read["node_changed"]))
    old |= {"node_changed": tuple(read["node_changed"]), "perfect": bool(read["perfect"])}
    old |= {"node_changed_iia": changed, "changed_iia": mean(changed)}
    old |= {"worst_changed_iia": min(_known(changed), default=None)}
    return Shares(**old, counts=None)


def share(row: Mapping[str, Any], name: str) -> Fraction | None:
    """The exact share that a row of results holds under a metric's name; None where it holds none."""
    if name in NAMES and row.get("counts") is not None:
        return getattr(read_shares(row), name)
    return exact(row.get(name))


def mean(found: Iterable[Fraction | None]) -> Fraction | None:
    """The mean of those that are known; None where none is."""
    known = _known(found)
    return sum(known, Fraction(0)) / len(known) if known else None


def _known(found: Iterable[Fraction | None]) -> list[Fraction]:
    return [x for x in found if x is not None]


def _whole(share: Fraction | None, of: int) -> Fraction | None:
    return None if share is None or not of else Fraction(round(share * of), of)


def _number(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_number(x) for x in value]
    return float(value) if isinstance(value, Fraction) else value


def _tally(found: Mapping[str, Any]) -> Tally:
    return Tally(np.array(found["right"], np.int64), np.array(found["of"], np.int64))


def _nested(counted: Any) -> Any:
    """Counts as JSON has them, by name."""
    if isinstance(counted, eqx.Module):
        return {name: _nested(value) for name, value in vars(counted).items() if value is not None}
    return np.asarray(counted).tolist()
