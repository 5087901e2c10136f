"""SAEs in SAELens' own format: a folder with cfg.json and sae_weights.safetensors, which SAE.load_from_disk takes."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from siitjax.analysis.sae.kinds import KINDS, SAE
from siitjax.analysis.sae.site import Site
from siitjax.base.errors import UserError
from siitjax.base.files import write_atomically

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FORMAT_VERSION = "6.54.0"
"""The version of SAELens whose format this is."""


def save_sae(folder: Path, sae: SAE, site: Site, model_name: str, context: int, about: dict[str, Any]) -> None:
    """Writes an SAE of activations as the transformer has them, not scaled.

    Args:
        model_name: of the transformer, for the metadata.
        context: tokens a sample.
        about: what else the metadata are to say, as JSON has it.
    """
    hook, _, _ = str(site).partition("[")
    kind = next(name for name, cls in KINDS.items() if cls is type(sae))
    d_in, d_sae = sae.W_enc.shape
    config = {
        "architecture": kind,
        "d_in": d_in,
        "d_sae": d_sae,
        **({"k": int(sae.sparsity)} if kind == "topk" else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "model_name": model_name,
            "hook_name": hook,
            "hook_head_index": site.head,
            "context_size": context,
            "prepend_bos": False,
            "siitjax": {**about, "sparsity": float(sae.sparsity)},
        },
    }
    weights = {f.name: np.asarray(getattr(sae, f.name)) for f in fields(sae) if f.name != "sparsity"}
    if "log_threshold" in weights:
        weights["threshold"] = np.exp(weights.pop("log_threshold"))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, save({name: np.ascontiguousarray(w) for name, w in weights.items()}))
    write_atomically(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def load_sae(folder: Path) -> SAE:
    """The SAE that `save_sae`, or SAELens, wrote for activations that are not normalised.

    Raises:
        UserError: the folder holds none, it is torn, or of a kind that ours are not.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        weights = dict(load((folder / WEIGHTS).read_bytes()))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} holds no whole SAE: {error}; it needs {CONFIG} and {WEIGHTS}") from None
    kind = config.get("architecture")
    usual = {"apply_b_dec_to_input": True, "normalize_activations": "none", "rescale_acts_by_decoder_norm": False}
    other = [f"{name} {config[name]}" for name, ours in usual.items() if config.get(name, ours) != ours]
    if kind not in KINDS or other:
        what = ", ".join([f'architecture "{kind}"', *other])
        raise UserError(f"{folder} is of {what}; ours are {', '.join(KINDS)} of activations that are not normalised")
    cls = KINDS[kind]
    if "threshold" in weights:
        # SAELens has thresholds of exactly 0, whose logarithm would be none.
        weights["log_threshold"] = np.log(np.maximum(weights.pop("threshold"), np.finfo(np.float32).tiny))
    wanted = {f.name for f in fields(cls)} - {"sparsity"}
    if set(weights) != wanted:
        raise UserError(
            f"{folder} holds the weights {', '.join(sorted(weights))}; {kind} has {', '.join(sorted(wanted))}"
        )
    stored = config.get("metadata", {}).get("siitjax", {}).get("sparsity", 0.0)
    sparsity = config["k"] if kind == "topk" else stored
    return cls(**{name: jnp.asarray(w, jnp.float32) for name, w in weights.items()}, sparsity=jnp.float32(sparsity))
