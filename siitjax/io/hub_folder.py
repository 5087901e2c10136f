"""A model as a folder that explains itself, as a model hub shows it.

    model.safetensors  the weights, under TransformerLens' names
    config.json        the transformer's shape, in the words of HookedTransformerConfig
    circuit.json       the ground truth: variables, nodes, edges; see siitjax.causal.ground_truth
    circuit.svg        the circuit, drawn; see siitjax.io.explorer.drawing
    vocab.json         each token's id
    metrics.json       what was measured, and what is known of the training
    README.md          the model card; see siitjax.io.model_card

A folder is written whole or not at all, and read without trust: nothing in it is ever unpickled.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from siitjax.base.errors import UserError
from siitjax.base.files import Holder, Lock, hold, make_folder, sync
from siitjax.causal.case import PAD, Case
from siitjax.causal.ground_truth import ground_truth
from siitjax.io.explorer.drawing import draw
from siitjax.io.model_card import card
from siitjax.io.trained import MODEL_FILE, Trained
from siitjax.model.nodes import edge_name
from siitjax.model.tl_config import lens_config
from siitjax.model.weights import save_weights, state_dict
from siitjax.siit.edge_metrics import by_edge
from siitjax.siit.metrics import EdgeMetrics, Shares


def write_folder(out: Path, trained: Trained, metrics: Shares | None = None) -> None:
    """Writes a model's folder.

    Args:
        metrics: what was measured, where the model itself does not say.

    Raises:
        UserError: `out` exists, or cannot be written.
    """
    case, model = trained.case, trained.model
    if trained.metrics is not None:
        metrics = trained.metrics
    measured = {} if metrics is None else {"metrics": metrics.to_json()}
    sample = np.asarray(case.draw(10, 10, np.random.default_rng(0))[0][0])
    example = tuple(case.vocabulary[token] for token in np.trim_zeros(sample - PAD, "b") + PAD)
    about = {name: said for name, said in trained.about.items() if name not in ("config", "metrics")}
    member = about.get("member", {})
    edges = None if metrics is None or metrics.counts is None else metrics.counts.edges
    n_weights = sum(weight.size for weight in state_dict(model).values())
    texts = {
        "config.json": _json(lens_config(model.config)),
        "circuit.json": _json(ground_truth(case, None if edges is None else _by_edge(case, edges))),
        "circuit.svg": draw(case) + "\n",
        "vocab.json": _json({token: i for i, token in enumerate(case.vocabulary)}),
        "metrics.json": _json({**measured, **about}),
        "README.md": card(case, metrics, member, n_weights, example, about.get("places", {})),
    }
    with new_folder(out) as folder:
        save_weights(folder / MODEL_FILE, model, {**about, **measured})
        for name, text in texts.items():
            (folder / name).write_text(text)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into; it is put at `out` when what was written is whole.

    Raises:
        UserError: `out` exists, another process writes it, or it cannot be written.
    """
    new, lock = out.with_name(f".{out.name}.new"), None
    try:
        check_free(out)
        make_folder(out.parent)
        lock = hold(out.with_name(f".{out.name}.lock"))
        if isinstance(lock, Holder):
            raise UserError(f"{out} is being written by process {lock.pid}; wait for it, or choose another OUT")
        check_free(out)  # again: another process may have written it before this one held it
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        yield new
        for path in (*new.rglob("*"), new):
            sync(path)
        new.rename(out)
        sync(out.parent)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); choose another OUT") from None
    finally:
        if isinstance(lock, Lock):
            shutil.rmtree(new, ignore_errors=True)
            lock.release()


def check_free(out: Path, what: str = "an export") -> None:
    """Raises UserError where something lies at `out` already."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists, and {what} replaces nothing; choose another OUT, or take it away")


def _by_edge(case: Case, measured: EdgeMetrics) -> dict[str, tuple[float | None, float | None]]:
    """The share of tokens that are right under a swap of each edge, and of those whose label it changes."""
    share = lambda tally: float(tally.share) if int(tally.of) else None
    units = zip(case.circuit.edge_units, by_edge(case, measured), strict=True)
    return {edge_name(e): (share(tokens), share(changed)) for unit, (_, tokens, changed) in units for e in unit}


def _json(content: Any) -> str:
    return json.dumps(content, indent=1) + "\n"
