"""Published folders of Anders & Garriga-Alonso 2024, read as a case and a transformer of ours.

Such a folder holds model.safetensors with TransformerLens' names, config.yaml (or config.json), and, for several tasks,
cases.json with their names. Their layout is not that of `siitjax.causal.combine`, so it is made here:

- all tasks use the same token ids, and the first token of a sample, which names the task, reuses one of them: 0, 1, ...
- to a task, every token that it does not have is PAD;
- variables that want the same head share it, and the task lives on the first head that no variable wants;
- no node chooses the answer, and a swap changes nothing downstream of it (`counterfactual="frozen"`).

Labels are classes below d_vocab. What the authors' code draws to validate on is not reproduced: samples are drawn as
the cases of ours do.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import yaml
from jaxtyping import Array, Bool, Int

from siitjax.base.errors import UserError
from siitjax.causal import registry
from siitjax.causal.case import PAD, Case
from siitjax.causal.circuit import Counterfactual, Variable
from siitjax.causal.combine import combine
from siitjax.causal.data import shares
from siitjax.io.trained import MODEL_FILE
from siitjax.model.config import TransformerConfig
from siitjax.model.tl_config import from_lens_config
from siitjax.model.transformer import Transformer
from siitjax.model.weights import checked_model, read_tensors, without_constants

NAMES = {
    "duplicate_remover_model": "duplicate_remover",
    "left_greater_model": "left_greater",
    "parens_checker_model": "paren_checker",
    "unique_extractor_model": "unique_extractor",
}
"""What the authors call the tasks, and what we do."""


@dataclass(frozen=True)
class Published(Case):
    """A case of several tasks whose first token, whatever it means elsewhere, names the task and is not counted."""

    def token_mask(self, tokens: Int[Array, "*batch seq"]) -> Bool[Array, "*batch seq"]:
        """Every token but the first and padding counts."""
        return (tokens != PAD).at[..., 0].set(False)


def read_published(folder: Path | str, counterfactual: Counterfactual = "frozen") -> tuple[Case, Transformer]:
    """The case and the transformer of a published folder, ready for `siitjax.siit.evaluate.evaluate`.

    Args:
        counterfactual: of several tasks, what a swap changes: "frozen" as they were trained, or "causal".

    Raises:
        UserError: the folder is not such a model, or its tasks are not among ours.
    """
    folder = Path(folder)
    if not (folder / MODEL_FILE).is_file():
        raise UserError(f"{folder} is not a published model: it holds no {MODEL_FILE}")
    found, _ = read_tensors(folder / MODEL_FILE)
    weights = without_constants(found)
    described = _config(folder)
    if (unembedding := weights.get("unembed.W_U")) is not None and unembedding.ndim == 2:
        described = {"d_vocab_out": unembedding.shape[1], **described}  # their config leaves it out
    config = from_lens_config(described, f"the config of {folder}")
    model = checked_model(config, weights, str(folder))
    parts = [registry.find(name) for name in _tasks(folder)]
    if len(parts) == 1:
        return _of_size(parts[0], config), model
    return _combined(parts, config, counterfactual), model


def _config(folder: Path) -> dict[str, Any]:
    for name in ("config.yaml", "config.json"):
        if (file := folder / name).is_file():
            try:
                found = yaml.safe_load(file.read_text())  # JSON is YAML
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise UserError(f"{file} cannot be read ({' '.join(str(error).split())})") from None
            if not isinstance(found, dict):
                raise UserError(f"{file} holds {type(found).__name__}, not fields such as n_layers")
            return found
    raise UserError(f"{folder} is not a published model: it holds neither config.yaml nor config.json")


def _tasks(folder: Path) -> list[str]:
    """Our names of the folder's tasks: from cases.json, or for a single one from the folder's own name."""
    file = folder / "cases.json"
    try:
        listed = json.loads(file.read_text()) if file.exists() else [folder.resolve().name]
    except ValueError as error:
        raise UserError(f"{file} is not whole JSON ({error})") from None
    names = [str(name) for name in listed] if isinstance(listed, list) and listed else [str(listed)]
    if unknown := [name for name in names if name not in NAMES]:
        where = str(file) if file.exists() else f"{folder} has no cases.json, and its name"
        raise UserError(f'{where} names the task "{unknown[0]}"; it must be among {", ".join(NAMES)}')
    if len(set(names)) < len(names):
        raise UserError(f"{file} names a task twice: {', '.join(names)}; published models have each once")
    return [NAMES[name] for name in names]


def _of_size(case: Case, config: TransformerConfig) -> Case:
    """The case on a transformer of this size."""
    return replace(
        case,
        n_layers=config.n_layers,
        d_model=config.d_model,
        d_head=config.d_head,
        n_ctx=config.n_ctx,
        n_outputs=config.d_vocab_out,
    )


def _combined(parts: Sequence[Case], config: TransformerConfig, counterfactual: Counterfactual) -> Case:
    ours = combine(parts, width_factor=None, selection=False, counterfactual=counterfactual)
    own = {f"{part.name}.{v.name}": v.node for part in parts for v in part.variables}
    free = next((node for node in config.nodes if node.head is not None and node not in own.values()), None)
    sizes = {part.name: len(part.vocabulary) for part in parts}

    def theirs(variable: Variable) -> Variable:
        owner, _, name = variable.name.partition(".")
        if variable.name == "task":
            return replace(variable, compute=lambda tokens: jnp.broadcast_to(tokens[:1], tokens.shape), node=free)
        if name == "tokens":
            return replace(variable, compute=partial(_seen, sizes[owner]))
        return replace(variable, node=own.get(variable.name))

    # A token's name is what it means to each task that has it.
    meanings = zip_longest(*(part.vocabulary for part in parts))
    return Published(
        **{f.name: getattr(ours, f.name) for f in fields(ours)}
        | {
            "vocabulary": tuple("/".join(dict.fromkeys(filter(None, names))) for names in meanings),
            "variables": tuple(map(theirs, ours.variables)),
            "tasks": (),
            "drawn": Mixed(tuple(parts), config.n_ctx),
            "n_ctx": config.n_ctx,
            "n_layers": config.n_layers,
            "d_model": config.d_model,
            "d_head": config.d_head,
            "n_outputs": config.d_vocab_out,
        }
    )


def _seen(size: int, tokens: Int[Array, " seq"]) -> Int[Array, " seq"]:
    """The sample as a task of `size` tokens sees it: PAD in the place of the first token, and for what it has not."""
    return jnp.where(tokens < size, tokens, PAD).at[0].set(PAD)


@dataclass(frozen=True)
class Mixed:
    """Draws samples of several tasks, an equal share of each: the task's number, its own sample, pads."""

    parts: tuple[Case, ...]
    n_ctx: int

    def __call__(
        self, n_train: int, n_validation: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, "train seq"], Int[np.ndarray, "validation seq"]]:
        n = len(self.parts)
        counts = zip(shares(n_train, n), shares(n_validation, n), strict=True)
        drawn = [part.draw(a, b, rng) for part, (a, b) in zip(self.parts, counts, strict=True)]
        train, validation = (np.concatenate([self._whole(i, pair[s]) for i, pair in enumerate(drawn)]) for s in (0, 1))
        return rng.permutation(train), rng.permutation(validation)

    def every(self, limit: int) -> Int[np.ndarray, "sample seq"] | None:
        """Every sample of the tasks that have no more than `limit`; None where none has so few."""
        found = [(i, part.every(limit)) for i, part in enumerate(self.parts)]
        samples = [self._whole(i, own) for i, own in found if own is not None]
        return np.concatenate(samples) if samples else None

    def with_context(self, n_ctx: int) -> "Mixed":
        """The same, the task's number before samples of n_ctx - 1 tokens of every task."""
        return Mixed(tuple(part.with_context(n_ctx - 1) for part in self.parts), n_ctx)

    def _whole(self, task: int, own: Int[np.ndarray, "n own"]) -> Int[np.ndarray, "n seq"]:
        first = np.pad(own, ((0, 0), (1, 0)), constant_values=task)
        return np.pad(first, ((0, 0), (0, self.n_ctx - first.shape[1])), constant_values=PAD)
