"""What the tests of a model's folder share: a trained model made up, and left_greater's folder."""

from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
from siitjax.evaluate import Metrics
from siitjax.folder import write_folder
from siitjax.trained import Trained
from tests.parity import random_model

FILES = ["README.md", "circuit.json", "config.json", "metrics.json", "model.safetensors", "vocab.json"]


def trained(name: str, **metrics) -> Trained:
    """A case's transformer with random weights, metrics made up, and a member's description."""
    case = cases.build(name)
    n_circuit, n_unused = (int(mask.sum()) for mask in (case.circuit.circuit_mask, case.circuit.unused_mask))
    made_up = {
        f.name: jnp.float32(0.5) for f in fields(Metrics) if not f.name.startswith("node") and f.name != "perfect"
    }
    shares = jnp.linspace(0.25, 1, n_circuit, dtype=jnp.float32)
    measured = Metrics(
        **(made_up | metrics),
        node_iia=shares,
        node_changed_iia=shares.at[0].set(jnp.nan),
        node_changed=jnp.arange(n_circuit),
        node_siia=jnp.ones(n_unused),
        perfect=jnp.bool(False),
    )
    member = {"setting": "made up", "seed": 3, "hyperparams": {"beta2": 0.9}, "training": {"epochs": 7}}
    about = {"member": {**member, "case": case.describe()}}
    return Trained(case, random_model(case.config), measured, about)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """That of left_greater."""
    out = tmp_path_factory.mktemp("folders") / "left_greater"
    write_folder(out, trained("left_greater"))
    return out


def bits(model) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model)]
