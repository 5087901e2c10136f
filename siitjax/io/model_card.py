"""The model card: a folder's README.md."""

from collections.abc import Mapping
from typing import Any

from siitjax.base.share import percent
from siitjax.causal.case import Case
from siitjax.causal.circuit import Circuit, Variable, unit_name
from siitjax.causal.ground_truth import LOGITS, edges
from siitjax.siit.edge_metrics import by_edge, holding, rows, shown
from siitjax.siit.metrics import Shares

SHARES = {
    "accuracy": "tokens answered right, nothing swapped",
    "iia": "tokens answered as the causal model says when one circuit node is swapped; mean over the nodes",
    "changed_iia": "the same, on the tokens whose label the swap changed",
    "worst_changed_iia": "the least of the nodes",
    "sequence_iia": "samples right at every token when one circuit node is swapped",
    "siia": "tokens answered right, by the label of no swap, when one unused node is swapped; mean over the nodes",
    "joint_siia": "the same with all unused nodes swapped together",
    "subset_siia": "the same with a random subset of them",
}
CARD = """---
license: mit
tags: [mechanistic-interpretability, ground-truth-circuit, transformer-lens]
---

# {name}

A small transformer whose circuit is known: it was trained by strict interchange interventions (SIIT) so that the nodes
below compute the variables below, and all other nodes contribute nothing. The metrics say how far that holds. Made by
siitjax.

| layers | d_model | heads a layer | d_head | d_mlp | n_ctx | tokens | outputs a token | weights |
|---|---|---|---|---|---|---|---|---|
| {shape} |

## Circuit

![The circuit, from the tokens at the bottom up to the logits](circuit.svg)

```mermaid
{drawing}
```

| variable | reads | node | hook |
|---|---|---|---|
{variables}

An arrow says that a node's variables read what another holds; variables without a node are computed wherever they are
read. {unused} of the {nodes} nodes hold nothing. `circuit.json` has all of it: each variable's values, the mask of the
nodes, the edges, and all possible edges.

{label}

## Metrics

{metrics}

## Load it

In this folder, with TransformerLens alone (3 or 4):

```python
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

config = {{**json.loads(Path("config.json").read_text()), "device": "cpu"}}
weights = load_file("model.safetensors")
try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
except ImportError:  # TransformerLens 4
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    shape = TransformerBridgeConfig(**config)
    model = TransformerBridge.boot_native(shape)
    model.load_state_dict(convert_tl_checkpoint(weights, shape))
else:
    model = HookedTransformer(HookedTransformerConfig(**config))
    model.load_state_dict(weights, strict=False)  # not strict: the causal masks are not saved

vocabulary = json.loads(Path("vocab.json").read_text())
tokens = torch.tensor([[vocabulary[token] for token in "{example}".split()]])
print(model(tokens){answer})
```

With siitjax (`pip install 'siitjax[torch]'`):

```python
from siitjax.torch import to_bridge, to_torch

model = to_bridge(".")  # TransformerLens' TransformerBridge; to_hooked_transformer before its version 4
model = to_torch(".")  # a plain torch.nn.Module with the same weights
```

In JAX:

```python
import siitjax

{places}trained = siitjax.load(".")
logits, activations = trained.model(trained.case.tokens("{string}".split()))
```

## How it was trained

{training}

Method: Geiger et al. 2022 (IIT, https://arxiv.org/abs/2112.00826), Gupta et al. 2024 (SIIT, InterpBench,
https://arxiv.org/abs/2407.14494), and the recipe of Anders & Garriga-Alonso 2024.
"""


def card(
    case: Case,
    metrics: Shares | None,
    member: Mapping[str, Any],
    n_weights: int,
    example: tuple[str, ...],
    places: Mapping[str, str],
) -> str:
    """The card's text.

    Args:
        metrics: what was measured; None where nothing was.
        member: what is known of the training, as `Member.describe` gives it; it may be empty.
        n_weights: how many numbers the transformer has.
        example: a sample, spelled as the case's tokens.
        places: where the cases are that are not siitjax' own, by name.
    """
    config = case.config
    sizes = (
        config.n_layers,
        config.d_model,
        config.n_heads,
        config.d_head,
        0 if config.attn_only else config.mlp_width,
    )
    shape = (*sizes, config.n_ctx, config.d_vocab, config.d_vocab_out, n_weights)
    return CARD.format(
        name=case.name,
        shape=" | ".join(f"{n:,}" for n in shape),
        drawing=drawing(case.circuit),
        variables="\n".join(
            f"| {v.name} | {', '.join(v.reads)} | {v.place or '-'} | {_hooks(case, v)} |" for v in case.variables
        ),
        unused=int(case.circuit.unused_mask.sum()),
        nodes=len(case.circuit.nodes),
        label=_label(case),
        answer="" if case.loss.label_shape(case.n_outputs) else ".argmax(-1)",
        metrics="Nothing was measured." if metrics is None else _metrics(case.circuit, metrics) + _edges(case, metrics),
        example=" ".join(example),
        string=" ".join(token for token in example if token != "BOS"),
        training=_training(member),
        places="".join(
            f'siitjax.find_case("{place}")  # {name} comes from there, not with siitjax\n'
            for name, place in places.items()
        ),
    )


def _hooks(case: Case, v: Variable) -> str:
    return " ".join(f"`{case.config.hook(node)}`" for node in v.nodes) or "-"


def _label(case: Case) -> str:
    """What an answer is, what it was trained by, and when it is right, in a sentence."""
    name, n, loss = case.variables[-1].name, case.n_outputs, case.loss
    which = "" if case.counted is None else f" The loss and the metrics are of {case.counts} alone."
    if not loss.label_shape(n):
        return (
            f"The label of a token is `{name}`, one of {n} classes. The loss is {type(loss).__name__}; "
            f"an answer is right when its largest logit is the label's.{which}"
        )
    numbers, right = ("a number", "it is") if n == 1 else (f"{n} numbers", "each is")
    tolerance = getattr(loss, "tolerance", None)
    when = "" if tolerance is None else f"; an answer is right when {right} off by no more than {tolerance:g}"
    return f"The label of a token is `{name}`, {numbers}. The loss is {type(loss).__name__}{when}.{which}"


def drawing(circuit: Circuit) -> str:
    """The circuit as a mermaid flowchart, from the tokens up to the logits."""
    held = {str(node): [v.name for v in circuit.at(node)] for node in circuit.nodes}
    drawn = edges(circuit)
    ends = {name for edge in drawn for name in edge}
    lines = ["flowchart BT"]
    for name in [*(name for name in held if name in ends), LOGITS]:
        inside = {"embed": "tokens", LOGITS: circuit.variables[-1].name}.get(name, ", ".join(held.get(name, ())))
        lines.append(f'    {name}["{name}: {inside}"]')
    return "\n".join([*lines, *(f"    {begin} --> {end}" for begin, end in drawn)])


def _metrics(circuit: Circuit, metrics: Shares) -> str:
    names = [*map(unit_name, circuit.units)]
    if len(names) < len(metrics.node_iia):
        names = ["embed", *names]
    columns = (metrics.node_changed, metrics.node_iia, metrics.node_changed_iia)
    return "\n".join(
        [
            "| metric | % | in words |",
            "|---|---|---|",
            *(f"| {name} | {percent(getattr(metrics, name))} | {words} |" for name, words in SHARES.items()),
            "",
            *_errors(metrics),
            "Of each circuit node, swapped alone:",
            "",
            "| node | labels that its swap changes | IIA | changed IIA |",
            "|---|---|---|---|",
            *(
                f"| {name} | {changed:,} | {percent(iia)} | {percent(changed_iia)} |"
                for name, changed, iia, changed_iia in zip(names, *columns, strict=True)
            ),
        ]
    )


def _errors(metrics: Shares) -> list[str]:
    """How far numeric labels were off, where they are numbers."""
    if metrics.mean_error is None:
        return []
    worst = max(metrics.node_mean_error, default=metrics.mean_error)
    return [
        f"The mean absolute error, in the label's unit, is {metrics.mean_error:.3g} with nothing swapped, and "
        f"{worst:.3g} under the worst swap of one circuit node.",
        "",
    ]


def _edges(case: Case, metrics: Shares) -> str:
    """What is promised of swaps of edges."""
    if metrics.counts is None or metrics.counts.edges is None:
        return "\n\nOnly swaps of single nodes, and of unused ones, were measured. Nothing is promised of other swaps."
    measured = metrics.counts.edges
    lines = [
        f"\n\nThis model {holding(case, measured)}. In % of {case.counts}, in brackets of those whose label the swap "
        "changes:",
        "",
        "| swap | all of the kind | the worst of them |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row.words} | {shown(row.mean, row.changed)} | {shown(row.worst, row.worst_changed)} |"
        for row in rows(case, measured)
    ]
    lines += ["", "Of each edge of the circuit, swapped alone:", ""]
    lines += ["| edge | labels that its swap changes | right | right of those |", "|---|---|---|---|"]
    for name, tokens, changed in by_edge(case, measured):
        share = percent(changed.share) if int(changed.of) else "-"
        lines.append(f"| {name} | {int(changed.of):,} | {percent(tokens.share)} | {share} |")
    return "\n".join(lines)


def _training(member: Mapping[str, Any]) -> str:
    """The training's numbers as a table, or a sentence where nothing is known."""
    own = {name: member[name] for name in ("setting", "seed") if name in member}
    known = own | member.get("training", {}) | member.get("hyperparams", {})
    if not known:
        return "Nothing is known of its training."
    written = lambda value: f"{value:g}" if isinstance(value, float) else f"{value}"
    return "\n".join(["| what | value |", "|---|---|", *(f"| {k} | {written(v)} |" for k, v in known.items())])
