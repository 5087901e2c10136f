"""The folder that EAP-IG's library reads, against what is known of its format: names, counts of edges, columns."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import cases
from siitjax.analysis.discovery.metrics import log_odds_lost
from siitjax.base.errors import UserError
from siitjax.cli.export import Export
from siitjax.io.eap_folder import edge_names
from siitjax.model.nodes import NodeList

NODE = r"input|logits|m\d+|a\d+\.h\d+"


@pytest.mark.parametrize(("layers", "edges"), [(1, 23), (2, 110), (3, 262), (6, 1108)])
def test_the_library_has_as_many_edges(layers, edges):
    names = [name for edge in NodeList(layers, 4).possible_edges for name in edge_names(edge)]
    assert len(names) == len({*names}) == edges


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("eap") / "1"
    assert Export("1", str(out), format="eap").run() == 0
    return out


def test_the_graph_is_one_of_the_library_s(folder):
    graph = json.loads((folder / "graph.json").read_text())
    assert graph["cfg"] == {"n_layers": 1, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 12}
    assert [*graph["nodes"]] == ["input", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0", "logits"]
    assert [name for name, node in graph["nodes"].items() if node["in_graph"]] == ["input", "a0.h1", "m0", "logits"]
    for name, edge in graph["edges"].items():
        match = re.fullmatch(rf"({NODE})->({NODE})(<[qkv]>)?", name)
        assert match, name
        sender, reader, end = match.groups()
        assert {sender, reader} <= {*graph["nodes"]}
        assert (end is not None) == reader.startswith("a")
        assert edge["in_graph"] == (edge["score"] > 0)
    true = {name for name, edge in graph["edges"].items() if edge["in_graph"]}
    assert true == {"input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "a0.h1->m0", "m0->logits"}


def test_the_pairs_are_strings_of_one_length_with_other_answers(folder):
    case = cases.find("left_greater")
    rows = [*csv.DictReader((folder / "pairs.csv").read_text().splitlines())]
    assert len(rows) > 100
    for row in rows[:20]:
        strings = [row[name].split() for name in ("clean", "corrupted", "corrupted_hard")]
        assert {word[0] for word in strings} == {"BOS"}
        assert len({len(words) for words in strings}) == 1
        tokens = [jnp.array([case.vocabulary.index(word) for word in words]) for words in strings]
        answers = [int(case.circuit(x)[0][-1]) for x in tokens]
        assert answers[:2] == [int(row["correct_idx"]), int(row["incorrect_idx"])]
        assert answers[0] not in answers[1:]


def test_the_metric_is_ours_a_token(folder):
    torch = pytest.importorskip("torch")
    names = {}
    exec((folder / "metric.py").read_text(), names)
    rng = np.random.default_rng(0)
    logits, clean = rng.normal(size=(2, 2, 5, 3)).astype(np.float32)
    found = names["log_odds_lost"](torch.tensor(logits), torch.tensor(clean), torch.tensor([5, 3]))
    each = np.asarray(log_odds_lost(jnp.asarray(logits), jnp.asarray(clean)))
    assert float(found) == pytest.approx((each[0].sum() + each[1, :3].sum()) / 8, rel=1e-4)
    flags = json.loads((folder / "flags.json").read_text())
    assert flags == {"use_attn_result": True, "use_split_qkv_input": True, "use_hook_mlp_in": True}


def test_a_folder_that_exists_and_another_format_are_one_line(folder, tmp_path, types_unchecked):
    wrong: list[tuple[Path, Any, str]] = [
        (folder, "eap", "exists, and an export replaces nothing"),
        (tmp_path / "new", "eapp", 'the format is "eapp"; did you mean "eap"'),
    ]
    for out, form, words in wrong:
        with pytest.raises(UserError) as told:
            Export("1", str(out), format=form).run()
        assert words in str(told.value)
