"""What the tests of a model's folder share: a trained model made up, and left_greater's folder."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import cases
from siitjax.causal.case import Case
from siitjax.io.hub_folder import write_folder
from siitjax.io.trained import Trained
from siitjax.siit.metrics import Metrics, Tally, shares
from tests.parity import random_model

FILES = ["README.md", "circuit.json", "circuit.svg", "config.json", "metrics.json", "model.safetensors", "vocab.json"]


def tally(right, of) -> Tally:
    return Tally(np.asarray(right), np.asarray(of))


def trained(case: str | Case, **metrics: Any) -> Trained:
    """A case's transformer with random weights, metrics made up, and a member's description."""
    case = cases.build(case) if isinstance(case, str) else case
    n_circuit, n_unused = (int(mask.sum()) for mask in (case.circuit.circuit_mask, case.circuit.unused_mask))
    some = tally(np.linspace(1, 4, n_circuit).astype(int), np.full(n_circuit, 4))
    made_up: dict[str, Any] = {
        "node": some,
        "changed": tally(np.arange(n_circuit), np.arange(n_circuit)),
        "whole": some,
    }
    made_up |= {name: tally(1, 2) for name in ("base", "joint", "subset")}
    made_up |= {"unused": tally(np.full(n_unused, 4), np.full(n_unused, 4))}
    measured = shares(Metrics(**(made_up | metrics)))
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
