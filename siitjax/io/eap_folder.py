"""A model's circuit and pairs in the format of EAP-IG's library (Hanna et al. 2024), for methods written for it.

graph.json   its Graph: which nodes and edges are of the circuit, and as an edge's score the share of labels that
             its swap changes. A head has three readers, q, k and v, which ours are together.
pairs.csv    strings that the exported tokenizer reads, with the answers at their last token, which differ
metric.py    the log-odds lost a token, since the library's own metrics look at the last position alone
flags.json   what the HookedTransformer's config must be set to before the library can read its edges
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from siitjax.base.errors import UserError
from siitjax.causal.case import PAD, Case
from siitjax.causal.ground_truth import edge_effects
from siitjax.io.hub_folder import new_folder
from siitjax.io.trained import Trained
from siitjax.model.nodes import EMBED, Edge, Node
from siitjax.siit.fresh_pairs import list_batches

PAIRS, DRAWN, SEED = 200, 4_000, 6_000_000
"""Pairs that are written, and strings that they are chosen from."""
FLAGS = {"use_attn_result": True, "use_split_qkv_input": True, "use_hook_mlp_in": True}
COLUMNS = ("clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx")
METRIC = '''"""The log-odds that the clean run's answer loses, on average over the tokens that are asked for."""

import torch

FIRST = {first}


def log_odds_lost(logits, clean_logits, input_lengths, labels=None, mean=True):
    """Of logits (batch, seq, out); tokens before FIRST name the task, those from a string's length on are pads."""
    answer = torch.nn.functional.one_hot(clean_logits.argmax(-1), logits.shape[-1]).bool()

    def log_odds(x):
        return x[answer].reshape(x.shape[:2]) - x.masked_fill(answer, -torch.inf).logsumexp(-1)

    lost = log_odds(clean_logits) - log_odds(logits)
    at = torch.arange(logits.shape[1], device=logits.device)[None]
    asked = (at >= FIRST) & (at < torch.as_tensor(input_lengths, device=logits.device)[:, None])
    each = (lost * asked).sum(-1)
    return each.sum() / asked.sum() if mean else each / asked.sum(-1)
'''


def write_eap(out: Path, trained: Trained) -> None:
    """Writes the folder.

    Raises:
        UserError: `out` exists or cannot be written, or the model has no MLPs, or ones that are cut into parts, where
            the library takes one node a layer for granted; or no two strings have other answers.
    """
    case = trained.case
    if case.attn_only:
        raise UserError(f"{case.name} has no MLPs, and EAP-IG's graphs have one a layer; choose another model")
    if case.config.n_parts > 1:
        raise UserError(f"{case.name} cuts its MLPs into parts, and EAP-IG's graphs have one node for each MLP")
    lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in string_pairs(case))]
    with new_folder(out) as folder:
        (folder / "graph.json").write_text(json.dumps(graph(case), indent=1) + "\n")
        (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
        (folder / "metric.py").write_text(METRIC.replace("{first}", str(min(len(case.tasks), 1))))
        (folder / "flags.json").write_text(json.dumps(FLAGS, indent=1) + "\n")


def graph(case: Case) -> dict[str, Any]:
    """What graph.json holds.

    Example:
        >>> import siitjax
        >>> found = graph(siitjax.find_case("left_greater"))
        >>> len(found["edges"]), found["edges"]["input->a0.h1<k>"]["in_graph"], found["nodes"]["a0.h3"]
        (23, True, {'in_graph': False})
    """
    config, effects = case.config, edge_effects(case)
    share = lambda edge: effects.get((str(edge[0]), str(edge[1])), 0.0)
    named = {name: share(edge) for edge in config.nodes.possible_edges for name in edge_names(edge)}
    held = {node for edge in config.nodes.possible_edges if share(edge) > 0 for node in edge}
    nodes = {"input": EMBED in held, **{_name(node): node in held for node in config.nodes if node != EMBED}}
    return {
        "cfg": {
            "n_layers": config.n_layers,
            "n_heads": config.n_heads,
            "parallel_attn_mlp": False,
            "d_model": config.d_model,
        },
        "nodes": {name: {"in_graph": held} for name, held in (nodes | {"logits": True}).items()},
        "edges": {name: {"score": score, "in_graph": score > 0} for name, score in named.items()},
    }


def edge_names(edge: Edge) -> list[str]:
    """What the library calls an edge: of one that ends in a head, its three.

    Example:
        >>> from siitjax.model.nodes import EMBED, head, mlp
        >>> edge_names((EMBED, head(0, 3))), edge_names((head(0, 3), mlp(0)))
        (['input->a0.h3<q>', 'input->a0.h3<k>', 'input->a0.h3<v>'], ['a0.h3->m0'])
    """
    sender, reader = map(_name, edge)
    ends = [""] if edge[1].head is None else ["<q>", "<k>", "<v>"]
    return [f"{sender}->{reader}{end}" for end in ends]


def _name(node: Node) -> str:
    if node == EMBED:
        return "input"
    if node.is_logits:
        return "logits"
    return f"m{node.layer}" if node.head is None else f"a{node.layer}.h{node.head}"


def string_pairs(case: Case) -> list[tuple[str, str, str, int, int]]:
    """Rows of pairs.csv. The corrupted string is any that is as long and has another answer at its last token; the
    hard one is, of those, one that differs in the fewest tokens.

    Raises:
        UserError: no two strings are so.
    """
    ((strings, _),) = list_batches(case, DRAWN, SEED)
    labels = np.asarray(jax.jit(jax.vmap(lambda tokens: case.circuit(tokens)[0]))(strings))
    length = (strings != PAD).sum(1)
    last = labels[np.arange(len(strings)), length - 1]
    rng, rows = np.random.default_rng(SEED), []
    for i in range(min(PAIRS, len(strings))):
        others = np.flatnonzero((length == length[i]) & (last != last[i]))
        if len(others):
            hard = others[(strings[others] != strings[i]).sum(1).argmin()]
            say = lambda j: " ".join(case.vocabulary[token] for token in strings[j][: length[j]])
            other = rng.choice(others)
            rows.append((say(i), say(other), say(hard), int(last[i]), int(last[other])))
    if not rows:
        raise UserError(f"no two strings of {case.name} are of one length and have different answers at their ends")
    return rows
