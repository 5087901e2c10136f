"""The data of a page, and the page: one file with all that it needs."""

import base64
import json
from importlib.resources import files
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siitjax.analysis.neurons import measure_neurons, samples_by_task
from siitjax.base.errors import UserError
from siitjax.causal.case import BOS, PAD, Case
from siitjax.causal.ground_truth import edge_effects, role
from siitjax.io.explorer.drawing import draw
from siitjax.io.explorer.programs import program
from siitjax.io.trained import Trained
from siitjax.model.nodes import EMBED, LOGITS
from siitjax.model.transformer import Transformer
from siitjax.model.weights import state_dict
from siitjax.siit.edge_metrics import holding, kinds, rows, shown
from siitjax.siit.fresh_pairs import list_batches, measure_edges
from siitjax.siit.metrics import EdgeMetrics

STATIC = files("siitjax.io.explorer") / "static"
SCRIPTS = ("arrays.js", "models.js", "page.js")
SEED = 2_000_000
"""Of the strings that a page is measured on, which no training draws."""
LIVE = 100
"""Pairs that a page carries, to measure any swap by itself."""
SINGLE = ("one node", "two nodes", "one edge of the circuit", "one edge outside")
"""Kinds whose swaps are measured one by one when the page is written."""
NEURON_SAMPLES, BACKGROUNDS = 100, 8
DRAWN, TRIED = 400, 200
"""Strings among which examples are looked for, and the closest pairs of them that are tried."""


def page(trained: Trained, pairs: int) -> str:
    """The page of a trained model, which stands alone: no server, no network.

    Args:
        pairs: fresh ones, on which every swap of one node, two nodes, and one edge is measured; 5,000 at most.

    Raises:
        UserError: a variable uses an operation that a page cannot run, or the circuit is of the rule "frozen".
    """
    text = (STATIC / "page.html").read_text()
    data = json.dumps(page_data(trained, pairs), separators=(",", ":")).replace("</", "<\\/")
    parts = {
        "TITLE": f"{trained.case.name}: look into a model whose circuit is known",
        "STYLE": (STATIC / "page.css").read_text(),
        "CIRCUIT": draw(trained.case, all_edges=True),
        "DATA": data,
        "SCRIPT": "\n".join((STATIC / name).read_text() for name in SCRIPTS),
    }
    for name, part in parts.items():
        text = text.replace(f"@@{name}@@", part)
    return text


def page_data(trained: Trained, pairs: int) -> dict[str, Any]:
    """What the page's scripts read.

    Raises:
        UserError: as `page`.
    """
    case, model = trained.case, trained.model
    if case.counterfactual != "causal":
        raise UserError(
            f'{case.name} is of the rule "{case.counterfactual}"; a page shows swaps under the rule "causal"'
        )
    found = measure_edges(case, model, pairs, SEED)
    base, source = (np.asarray(x) for x in list_batches(case, LIVE, SEED + 1)[0])
    return {
        "name": case.name,
        "tasks": list(case.tasks),
        "vocabulary": list(case.vocabulary),
        "n_ctx": case.n_ctx,
        "bos": BOS,
        "pad": PAD,
        "loss": {
            "classes": not case.loss.label_shape(case.n_outputs),
            "tolerance": getattr(case.loss, "tolerance", None),
        },
        "letters": _letters(case),
        "config": {**_config(case), "causal": case.config.causal},
        "weights": _weights(model),
        "circuit": _circuit(case),
        "roles": {str(node): role(case, node) for node in case.circuit.nodes},
        "tasksOf": _tasks_of(case),
        "effects": {"->".join(edge): effect for edge, effect in edge_effects(case).items()},
        "measured": {"pairs": pairs, "swaps": _swaps(case, found), "holds": holding(case, found)},
        "kinds": [
            {"swap": row.words, "mean": shown(row.mean, row.changed), "worst": shown(row.worst, row.worst_changed)}
            for row in rows(case, found)
        ],
        "examples": examples(case),
        "pairs": [[b, s] for b, s in zip(base.tolist(), source.tolist(), strict=True)],
        "neurons": _neurons(case, model),
    }


def examples(case: Case) -> list[dict[str, Any]]:
    """A pair of strings for each variable that a node holds: they differ in it, its swap changes the label, and of all
    that were drawn they differ in the fewest tokens."""
    drawn, _ = case.draw(DRAWN, 20 * max(len(case.tasks), 1), np.random.default_rng(0))
    labels, values = map(jax.device_get, jax.jit(jax.vmap(case.circuit))(jnp.asarray(drawn)))
    by_name = dict(zip(("tokens", *(v.name for v in case.circuit.ordered)), values, strict=True))
    under = jax.jit(jax.vmap(lambda base, mask, held: case.circuit(base, (mask, held))[0], (0, None, 0)))
    found = []
    for variable in case.variables:
        if not variable.nodes:
            continue
        task, first = case.task_of(variable.name) if case.tasks else None, len(case.vocabulary) - len(case.tasks)
        ours = np.arange(len(drawn)) if task is None else np.flatnonzero(drawn[:, 0] == first + task)
        value = np.asarray(by_name[variable.name])[ours].reshape(len(ours), -1)
        apart = (drawn[ours][:, None] != drawn[ours][None]).sum(-1)
        differ = (value[:, None] != value[None]).any(-1)
        i, j = np.unravel_index(np.argsort(np.where(differ, apart, drawn.shape[1] + 1), axis=None)[:TRIED], apart.shape)
        base, source = ours[i], ours[j]
        mask = jnp.asarray(case.circuit.nodes.mask(variable.nodes))
        swapped = under(jnp.asarray(drawn[base]), mask, tuple(jnp.asarray(np.asarray(v)[source]) for v in values))
        changed = ~np.asarray(case.loss.same(swapped, jnp.asarray(labels[base])))
        best = int((changed & np.asarray(case.counted_mask(jnp.asarray(drawn[base])))).any(1).argmax())
        pair = {"base": drawn[base[best]].tolist(), "source": drawn[source[best]].tolist()}
        found.append({"variable": variable.name, **pair})
    return found


def _letters(case: Case) -> bool:
    """Whether each token of a string is one letter, so that strings need no spaces."""
    return all(len(token) == 1 for token in case.vocabulary[2 : len(case.vocabulary) - len(case.tasks)])


def _config(case: Case) -> dict[str, Any]:
    c = case.config
    names = ("n_layers", "n_heads", "d_model", "d_head", "act_fn", "attn_only", "layer_norm", "d_vocab_out")
    mlps = {"d_mlp": 0, "mlp_parts": []} if c.attn_only else {"d_mlp": c.mlp_width, "mlp_parts": list(c.part_sizes)}
    return {**{name: getattr(c, name) for name in names}, **mlps}


def _weights(model: Transformer) -> dict[str, str]:
    pack = lambda weight: base64.b64encode(np.ascontiguousarray(weight, "<f4").tobytes()).decode()
    return {name: pack(weight) for name, weight in state_dict(model).items()}


def _circuit(case: Case) -> dict[str, Any]:
    """The causal model as `models.js` runs it, on samples as long as the context."""
    tokens = jax.ShapeDtypeStruct((case.n_ctx,), jnp.int32)
    _, values = jax.eval_shape(case.circuit, tokens)
    circuit = case.circuit
    shapes = dict(zip(("tokens", *(v.name for v in circuit.ordered)), values, strict=True))
    last = case.variables[-1].name
    nodes = circuit.nodes.nodes
    return {
        "variables": [
            {
                "name": v.name,
                "reads": list(v.reads),
                "nodes": [str(node) for node in v.nodes],
                "label": v.name == last,
                "program": program(v.compute, *(shapes[name] for name in v.reads)),
            }
            for v in circuit.ordered
        ],
        "senders": [str(node) for node in nodes],
        "readers": [str(node) for node in circuit.nodes.readers],
        "units": {str(node): int(circuit.first_of_unit[i]) for i, node in enumerate(nodes)},
        "depths": {str(node): node.depth for node in (*nodes, LOGITS)},
        "counted": program(case.counted_mask, tokens),
    }


def _tasks_of(case: Case) -> dict[str, list[int]]:
    """Which tasks each node's variables are of; one that all tasks share is of all."""
    every = [*range(len(case.tasks))]
    found: dict[str, list[int]] = {}
    for node in case.circuit.nodes:
        tasks = [case.task_of(v.name) for v in case.circuit.at(node)]
        found[str(node)] = every if node == EMBED or None in tasks else sorted({t for t in tasks if t is not None})
    return found


def _swaps(case: Case, found: EdgeMetrics) -> dict[str, list[int]]:
    """Of each swap that was measured one by one: tokens right, tokens, changed tokens right, changed tokens."""
    first, swaps = 0, {}
    count = lambda tally: [int(tally.right), int(tally.of)]
    for kind in kinds(case):
        for i, name in enumerate(kind.names):
            if kind.words in SINGLE:
                tokens, changed = (tally.at(first + i) for tally in (found.tokens, found.changed))
                swaps[name] = count(tokens) + count(changed)
        first += len(kind.names)
    return swaps


def _neurons(case: Case, model: Transformer) -> dict[str, Any] | None:
    """How much each neuron matters to each task, in nats a token; None of one task, or without MLPs."""
    if not case.tasks or case.config.attn_only:
        return None
    rng = np.random.default_rng(0)
    samples = samples_by_task(case, NEURON_SAMPLES, rng)
    answers = measure_neurons(model, case, samples, rng, ablated=NEURON_SAMPLES, backgrounds=BACKGROUNDS)
    return {"tasks": list(answers.tasks), "loss": np.round(answers.loss, 4).tolist()}
