"""A model as a folder that explains itself, as a model hub shows it.

    model.safetensors  the weights, under TransformerLens' names
    config.json        the transformer's shape, in the words of HookedTransformerConfig
    circuit.json       the ground truth: variables, nodes, edges; see siitjax.truth
    vocab.json         each token's id
    metrics.json       what was measured, and what is known of the training
    README.md          the model card; see siitjax.card

A folder is written whole or not at all, and read without trust: nothing in it is ever unpickled.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from siitjax.card import card
from siitjax.case import PAD
from siitjax.errors import UserError, one_line
from siitjax.export import METADATA, save_weights, state_dict, with_weights
from siitjax.files import Holder, Lock, hold, make_folder, sync
from siitjax.lens import lens_config
from siitjax.metrics import Shares
from siitjax.trained import MODEL_FILE, Trained, members_instead
from siitjax.transformer import Transformer, TransformerConfig, init_transformer
from siitjax.truth import ground_truth

Weights = Mapping[str, Shaped[np.ndarray, "..."]]


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
        "circuit.json": _json(ground_truth(case, edges)),
        "vocab.json": _json({token: i for i, token in enumerate(case.vocabulary)}),
        "metrics.json": _json({**measured, **about}),
        "README.md": card(case, metrics, member, n_weights, example),
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
        _check_free(out)
        make_folder(out.parent)
        lock = hold(out.with_name(f".{out.name}.lock"))
        if isinstance(lock, Holder):
            raise UserError(f"{out} is being written by process {lock.pid}; wait for it, or choose another OUT")
        _check_free(out)  # again: another process may have written it before this one held it
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


def _check_free(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists, and an export replaces nothing; choose another OUT, or take it away")


def read_model(path: Path) -> Transformer:
    """The transformer of a model's folder, or of a weights file of siitjax.

    Raises:
        UserError: it is none, is torn, or its weights are not those that its config needs; all that differ are named.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        what = f"there is no {file.name if path.is_dir() else 'such file or folder'}"
        raise UserError(
            f"{path} is not a model: {members_instead(path) or what}; "
            "python -m siitjax.export MODEL OUT makes a model's folder"
        )
    weights, metadata = read_tensors(file)
    if METADATA not in metadata:
        raise UserError(
            f"{file} says nothing of its transformer, so siitjax did not write it; "
            "read published folders with siitjax.torch.read_published"
        )
    try:
        config = TransformerConfig(**json.loads(metadata[METADATA])["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} describes its transformer in a way that this version cannot read ({error})") from None
    return checked_model(config, weights, str(file))


def read_tensors(file: Path) -> tuple[Weights, dict[str, str]]:
    """A safetensors file's tensors, and its metadata. Raises UserError where it is none, or torn."""
    try:
        with safe_open(file, "numpy") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({one_line(error)})") from None


def without_constants(weights: Weights) -> Weights:
    """The weights without the two constants of attention that TransformerLens keeps in its state dicts."""
    return {name: weight for name, weight in weights.items() if not name.endswith(("attn.mask", "attn.IGNORE"))}


def checked_model(config: TransformerConfig, weights: Weights, where: str) -> Transformer:
    """The transformer with these weights, which must be its own: each of its shape, finite, and none more.

    Raises:
        UserError: they are not; the message names all that are missing, unknown, of another shape or not finite.
    """
    blank = jax.eval_shape(lambda: init_transformer(config, key=jax.random.key(0)))
    shapes = {name: weight.shape for name, weight in _named(blank).items()}
    both = [name for name in shapes if name in weights]
    wrong = [f"{n} of shape {weights[n].shape}, not {shapes[n]}" for n in both if weights[n].shape != shapes[n]]
    infinite = [name for name in both if not np.isfinite(weights[name].astype(np.float32)).all()]
    found = {
        "lack": [name for name in shapes if name not in weights],
        "hold unknown": [name for name in weights if name not in shapes],
        "hold": wrong,
        "hold NaN or infinite numbers in": infinite,
    }
    if said := [f"{what} {', '.join(names)}" for what, names in found.items() if names]:
        raise UserError(f"the weights in {where} are not this transformer's: they {'; they '.join(said)}")
    return with_weights(blank, weights)


def _named(model: Any) -> dict[str, Any]:
    keystr = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return {keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


def _json(content: Any) -> str:
    return json.dumps(content, indent=1) + "\n"
