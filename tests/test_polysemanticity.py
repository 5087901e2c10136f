"""The question of polysemanticity: its rule, its folder, its refusals, and what it measures of a sweep by width."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
from siitjax.analysis.neuron_summary import Model
from siitjax.io.trained import read_converged
from siitjax.model.transformer import init_transformer
from siitjax.siit.metrics import Metrics, Tally
from siitjax.siit.train import History, Stop
from siitjax.sweep.engine import Outcome
from siitjax.sweep.results import Results
from sweeps.capacity import Capacity
from sweeps.polysemanticity import Polysemanticity, decide, starts
from tests.test_betas import contents

SMALL = ("--models=1", "--strings=20", "--ablated=3", "--backgrounds=2")


def model_found(name="0+1", tasks=2, live=100, shared=0, high: float | None = 0.02, layers=((0, 50), (0, 50))) -> Model:
    rest = {"neurons": live, "matter": live, "alone": 0, "control": high, "control_low": high, "control_high": high}
    means = {"chance_low": 0.0, "chance_high": 0.0, "participation": 1.0, "answered": 1.0, "of_two": 0.0, "told": []}
    return Model(name, tasks, live=live, shared=shared, layers=list(layers), **rest, **means)


@pytest.mark.parametrize(
    ("models", "kind"),
    [
        ((2, (11, 11, 0)), "supported"),
        ((2, (11, 10, 10)), "contradicted"),
        ((2, (11, 11, 0, 0)), "undecided"),
        ((11, (11, 11, 11)), "contradicted"),
        ((2, (11, 11)), "undecided"),
    ],
)
def test_the_verdict_is_the_rule_s(models, kind):
    high, shared = models
    found = [model_found(f"0+{i + 1}", shared=n, high=high / 100) for i, n in enumerate(shared)]
    assert decide([*found, *[model_found(str(i), tasks=1, shared=11) for i in range(4)]]).kind == kind


@pytest.mark.parametrize(
    ("seeds", "kind", "good"),
    [
        # Shared neurons of each seed, of 100: a model is polysemantic where two thirds of its seeds have more than 10.
        (((11, 11, 0), (11, 11, 0), (0, 0, 0)), "supported", 2),
        (((11, 0, 0), (11, 0, 0), (11, 11, 11)), "contradicted", 1),
        (((11,), (11, 11, 0), (11, 0)), "supported", 2),
    ],
)
def test_a_model_with_several_seeds_counts_once(seeds, kind, good):
    name = lambda model, seed: f"0+{model + 1}" + (f", seed {seed}" if seed else "")
    found = [model_found(name(i, seed), shared=n) for i, each in enumerate(seeds) for seed, n in enumerate(each)]
    verdict = decide(found)
    assert verdict.kind == kind
    assert f"in {good} of 3 combined models ({len(found)} seeds of them, each judged by two" in verdict.because


def test_where_superposition_starts_is_the_widest_mlp_that_is_mostly_shared():
    wide, narrow, widest = (
        model_found(live=2 * n, layers=((int(share * n), n), (n, n))) for n, share in ((50, 0.4), (10, 0.6), (90, 0.6))
    )
    assert "2 tasks at 10 neurons an MLP or fewer (of 10, 50)." in starts([wide, narrow])
    assert "2 tasks at 10 neurons an MLP or fewer (of 10, 50, 90)." in starts([narrow, wide, widest])
    assert "2 tasks not even at the narrowest (of 50)." in starts([wide])
    assert "nothing converged" in starts([])


def test_the_command_writes_a_folder_once_and_refuses_the_rest_in_one_line(tmp_path, commands):
    out, foreign = tmp_path / "results", tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "summary.json").write_text("[1]")
    first, again, *refused = commands(
        Polysemanticity,
        (*SMALL, f"--out={out}"),
        (*SMALL, f"--out={out}"),
        (*SMALL, "--ablated=4", f"--out={out}"),
        (*SMALL, f"--out={foreign}"),
        ("--models=0+9", f"--out={tmp_path / 'new'}"),
        ("--strings=1", f"--out={tmp_path / 'new'}"),
        (*SMALL, f"--capacity={foreign}", f"--out={tmp_path / 'new'}"),
        (*SMALL, f"--out={foreign / 'summary.json' / 'new'}"),
    )
    assert first[0] == 0, first[2]
    assert "Undecided: the rule needs three combined models, and 0 were measured." in first[1]
    assert list(contents(out)) == [
        "figure.pdf",
        "figure.png",
        "map.pdf",
        "map.png",
        "neurons.jsonl",
        "rows.jsonl",
        "summary.json",
    ]
    rows = [json.loads(line) for line in (out / "neurons.jsonl").read_text().splitlines()]
    assert [(row["layer"], row["neuron"]) for row in rows] == [(0, i) for i in range(48)]
    assert set(rows[0]["loss"]) == {"left_greater"}
    assert set(rows[0]["information"]) == {"counts", "left_greater"}
    assert again[0] == 0
    assert "was finished before; nothing was changed" in again[1]
    words = (
        "holds another run, with other ablated; choose another --out",
        "exists, and is no folder of this question; choose another --out",
        'the model is "0+9"; did you mean "0+',
        "--strings is 1; it must be at least 20",
        "is not a sweep's results folder (it holds no rows); give one, such as python -m sweeps.capacity leaves",
        "new cannot be written (File exists); choose another OUT",
    )
    for (code, said, err), word in zip(refused, words, strict=True):
        assert (code, said) == (2, ""), err
        assert err.count("\n") == 1, err
        assert word in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "results"]


@pytest.fixture
def swept(tmp_path) -> Path:
    """What a sweep of two copies of left_greater would leave, with random weights; seed 0 alone converged."""
    members = tuple(Capacity(models=("1+1",), d_mlp=(4,), seeds=2).members())
    results = Results(tmp_path / "capacity", Capacity.title, members)
    one, two = (Tally(np.ones(shape, int), np.ones(shape, int)) for shape in ((), 2))
    each: dict[str, Any] = {"node": two, "changed": two, "whole": two, "unused": two, "edges": None, "errors": None}
    metrics = Metrics(**{f.name: each.get(f.name, one) for f in fields(Metrics)})
    rng, shape = np.random.default_rng(0), members[0].config.case.config
    blank = jax.eval_shape(lambda: init_transformer(shape, key=jax.random.key(0)))
    model = jax.tree.map(lambda w: jnp.asarray(0.1 * rng.standard_normal(w.shape), w.dtype), blank)
    with results.held():
        results.begin(resume=False)
        for i, (member, stop) in enumerate(zip(members, (Stop.CONVERGED, Stop.EXHAUSTED), strict=True)):
            outcome = Outcome(stop, 0, 0.0, metrics, History(jnp.zeros((0, 3)), metrics), model)
            results.append(results.write(i, member, outcome))
    return results.folder


def test_what_converged_in_a_sweep_is_measured_by_width(swept, tmp_path, commands):
    out = tmp_path / "results"
    flags = (*SMALL, f"--capacity={swept}", f"--out={out}")
    (code, said, err), again, without = commands(Polysemanticity, flags, flags, (*SMALL, f"--out={out}"))
    assert code == 0, err
    summary = json.loads((out / "summary.json").read_text())
    first, width = (json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines())
    assert (first["name"], first["by_width"], width["by_width"]) == ("1", False, True)
    name = "1+1, d_mlp 4, seed 0"
    assert list(summary["config"]["weights"]) == ["1", name]
    assert [width[key] for key in ("name", "tasks", "neurons", "control")] == [name, 2, 8, None]
    rows = [json.loads(line) for line in (out / "neurons.jsonl").read_text().splitlines()]
    ours = [row for row in rows if row["model"] == name]
    assert len(rows) == 48 + len(ours)
    assert [(row["layer"], row["neuron"]) for row in ours] == [(layer, i) for layer in range(2) for i in range(4)]
    assert set(ours[0]["loss"]) == {"left_greater", "left_greater#2"}
    live = [sum(row["live"] for row in ours if row["layer"] == layer) for layer in range(2)]
    assert min(live) > 0
    # Weights as small as these move no loss by much.
    assert width["layers"] == [[0, n] for n in live]
    assert not any(row["matters_to"] for row in ours)
    sentence = "Most live neurons beneath the answer's MLP are shared: 2 tasks not even at the narrowest (of 4)."
    assert summary["said"].endswith(sentence)
    assert sentence in said
    assert "By width" in said
    assert again[0] == 0
    assert sentence in again[1]
    assert without[0] == 2
    assert "holds another run, with other weights; choose another --out" in without[2]


def test_members_that_hold_are_further_seeds_measured_beside_random_transformers(tmp_path, commands, member):
    out, again = tmp_path / "results", shutil.copytree(member, tmp_path / "again")
    asked = (*SMALL, f"--members={member}")
    measured, twice = commands(
        Polysemanticity,
        (*asked, f"--out={out}"),
        (*asked[:-1], f"--members={member},{again}", f"--out={tmp_path / 'new'}"),
    )
    assert measured[0] == 0, measured[2]
    shipped, other = (json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines())
    assert (shipped["name"], other["name"], other["by_width"]) == ("1", "1, seed 4", False)
    # The weights are the same, and so is all but the random transformers beside them.
    assert all(shipped[key] == other[key] for key in ("live", "matter", "layers"))
    assert other["control"] is not None
    assert twice[0] == 2
    assert "--members give 1, seed 4 twice; give each once" in twice[2]


def test_the_rows_of_every_host_are_read(swept):
    ours, theirs = (swept / "rows.jsonl").read_text().splitlines(keepends=True)
    (swept / "rows.jsonl").write_text(ours)
    (swept / "rows.1.jsonl").write_text(theirs.replace("exhausted", "converged"))
    assert list(read_converged(swept, cases.described)) == ["1+1, d_mlp 4, seed 0", "1+1, d_mlp 4, seed 1"]
