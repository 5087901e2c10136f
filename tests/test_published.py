"""Published folders are read with the layout of their authors, and evaluated: folders are made here as their code
makes them, and what a swap changes under their rule is worked out in plain Python."""

import json
import re
import warnings
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

from siitjax.model.nodes import Node
from siitjax.siit.evaluate import evaluate
from siitjax.torch import read_published

SIZES: dict[str, dict[str, Any]] = {
    "left_greater_model": {"n_layers": 1, "d_model": 12, "d_head": 3, "d_vocab": 4, "n_ctx": 15},
    "parens_checker_model": {"n_layers": 3, "d_model": 20, "d_head": 5, "d_vocab": 4, "n_ctx": 15},
    "cases_1+2": {"n_layers": 3, "d_model": 20, "d_head": 5, "d_vocab": 4, "n_ctx": 16},
    "cases_0+1+2+3": {"n_layers": 3, "d_model": 32, "d_head": 8, "d_vocab": 5, "n_ctx": 16},
}
TASKS = ("duplicate_remover_model", "left_greater_model", "parens_checker_model", "unique_extractor_model")


@cache
def untrained(name: str) -> HookedTransformer:
    """A model of that size, as the authors' code makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedTransformer(HookedTransformerConfig(**SIZES[name], act_fn="relu", seed=0, device="cpu"))


def publish(folder: Path, file: str = "config.yaml") -> HookedTransformer:
    """A folder as the authors' code writes it; gives its model."""
    model = untrained(folder.name)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    write = yaml.dump if file.endswith("yaml") else json.dumps
    (folder / file).write_text(write({**SIZES[folder.name], "act_fn": "relu", "seed": None}))
    if folder.name.startswith("cases_"):
        numbers = folder.name.removeprefix("cases_").split("+")
        (folder / "cases.json").write_text(json.dumps([TASKS[int(number)] for number in numbers]))
    return model


def answers(task: int, string: list[int]) -> list[int]:
    """What a task of 1+2 answers to a string of 2 and 3, in plain Python: 0 is left_greater, 1 paren_checker."""
    heights = list(accumulate(1 if token == 2 else -1 for token in string))
    lowest = list(accumulate(heights, min))
    if task == 0:
        return [int(height > 0) for height in heights]
    return [int(height == 0 and low >= 0) for height, low in zip(heights, lowest, strict=True)]


@pytest.mark.parametrize(
    ("name", "file"), [*((name, "config.yaml") for name in SIZES), ("left_greater_model", "config.json")]
)
def test_the_transformer_computes_what_theirs_computes(name, file, tmp_path):
    theirs = publish(tmp_path / name, file)
    case, ours = read_published(tmp_path / name)
    assert ours.config == case.config
    tokens = np.random.default_rng(0).integers(0, ours.config.d_vocab, (5, ours.config.n_ctx)).astype(np.int32)
    logits, _ = jax.jit(jax.vmap(ours))(tokens)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens).long())
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_samples_begin_with_the_tasks_number_and_all_else_keeps_its_meaning(tmp_path):
    publish(tmp_path / "cases_1+2")
    case, _ = read_published(tmp_path / "cases_1+2")
    train, validation = case.draw(40, 10, np.random.default_rng(0))
    assert (train.shape, validation.shape) == ((40, 16), (10, 16))
    assert set(train[:, 0]) == {0, 1}
    assert set(train[:, 1]) == {0}
    assert set(train[:, 2:].flat) == {2, 3}
    for sample in train:
        labels, _ = case.circuit(jnp.asarray(sample))
        task, string = int(sample[0]), sample[2:].tolist()
        assert labels[1:].tolist() == [2, *answers(task, string)]
        assert case.token_mask(jnp.asarray(sample)).tolist() == [False, *15 * [True]]


def test_pads_at_the_end_do_not_count_and_a_foreign_token_is_pad_to_a_task(tmp_path):
    publish(tmp_path / "cases_0+1+2+3")
    case, _ = read_published(tmp_path / "cases_0+1+2+3")
    assert case.vocabulary == ("BOS", "PAD", "a/(", "b/)", "c")
    sample = jnp.array([1, 0, 2, 4, 2, 3, *10 * [1]], jnp.int32)
    assert case.token_mask(sample).tolist() == [False, *5 * [True], *10 * [False]]
    labels, _ = case.circuit(sample)
    assert labels[1:6].tolist() == [2, 1, 1, 1, 1]  # to left_greater, ( PAD ( ): 1, 1, 2, 1 open


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("left_greater_model", "L0H1 MLP0"),
        ("parens_checker_model", "L0H3 MLP0 MLP1 L2H3 MLP2"),
        ("cases_1+2", "L0H0 L0H1 L0H3 MLP0 MLP1 L2H3 MLP2"),
        ("cases_0+1+2+3", "L0H0 L0H1 L0H2 L0H3 MLP0 L1H0 MLP1 L2H3 MLP2"),
    ],
)
def test_variables_live_where_the_authors_put_them(name, nodes, tmp_path):
    """The task is on the first head that no variable wants: with all four tasks, on layer 1."""
    publish(tmp_path / name)
    case, _ = read_published(tmp_path / name)
    assert set(map(str, case.circuit.nodes.named(case.circuit.circuit_mask))) == set(nodes.split())


def swapper(case):
    """The string's labels when one node is swapped."""
    labels = jax.jit(lambda base, source, mask: case.circuit(base, (mask, case.circuit(source)[1]))[0][2:])
    return lambda base, source, node: labels(base, source, case.circuit.nodes.mask([Node.parse(node)])).tolist()


def test_under_their_rule_a_swap_changes_nothing_downstream_and_under_ours_it_does(tmp_path):
    publish(tmp_path / "cases_1+2")
    case, _ = read_published(tmp_path / "cases_1+2")
    frozen, causal = swapper(case), swapper(read_published(tmp_path / "cases_1+2", "causal")[0])
    samples = case.draw(40, 10, np.random.default_rng(1))[0]
    for base, source in zip(samples, np.roll(samples, 1, 0), strict=True):
        task, own, other = int(base[0]), base[2:].tolist(), source[2:].tolist()
        for node in ("L0H1", "L0H3", "MLP1", "L2H3"):
            assert frozen(base, source, node) == answers(task, own)
        assert frozen(base, source, "L0H0") == answers(int(source[0]), own)
        assert frozen(base, source, "MLP0") == answers(task, other if task == 0 else own)
        assert frozen(base, source, "MLP2") == answers(task, other if task == 1 else own)
        assert causal(base, source, "L0H1") == answers(task, other if task == 0 else own)
        assert causal(base, source, "MLP0") == answers(task, other)


def test_it_can_be_evaluated_by_ours(tmp_path):
    publish(tmp_path / "left_greater_model")
    case, model = read_published(tmp_path / "left_greater_model")
    samples = jnp.asarray(case.draw(40, 10, np.random.default_rng(0))[0])
    metrics = jax.jit(lambda model: evaluate(model, case, samples, key=jax.random.key(0), embedding=True))(model)
    assert len(metrics.node.of) == 3  # the embedding counted, as the authors did
    logits, _ = jax.jit(jax.vmap(model))(samples)
    expected = [[2, *answers(0, sample[1:].tolist())] for sample in samples]
    assert int(metrics.base.right) == np.sum(np.asarray(logits).argmax(-1) == expected)


def damaged(folder: Path, name: str) -> Path:
    """A published folder with one thing wrong."""
    publish(folder)
    if name == "nan":
        weights = load_file(folder / "model.safetensors")
        weights["embed.W_E"][0, 0] = torch.nan
        save_file(weights, folder / "model.safetensors")
    elif name == "unknown":
        weights = load_file(folder / "model.safetensors")
        save_file({**weights, "blocks.0.attn.W_G": torch.ones(2)}, folder / "model.safetensors")
    elif name == "torn":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    elif name == "size":
        (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("d_head: 5", "d_head: 4"))
    elif name in ("config.yaml", "model.safetensors"):
        (folder / name).unlink()
    else:
        (folder / name.split()[0]).write_text(name.split(maxsplit=1)[1])
    return folder


DAMAGED = {
    "nan": "they hold NaN or infinite numbers in embed.W_E",
    "unknown": "they hold unknown blocks.0.attn.W_G",
    "torn": "model.safetensors is not a whole safetensors file (",
    "size": "blocks.0.attn.W_Q of shape (4, 20, 5), not (5, 20, 4)",
    "config.yaml": "is not a published model: it holds neither config.yaml nor config.json",
    "model.safetensors": "is not a published model: it holds no model.safetensors",
    "config.yaml [1, 2]": "config.yaml holds list, not fields such as n_layers",
    "config.yaml {a: ": "config.yaml cannot be read (",
    "config.yaml n_layers: 3": "does not say d_model, d_head, n_ctx, d_vocab, act_fn; a transformer needs",
    "config.yaml !!python/object/apply:os.getcwd []": "could not determine a constructor",
    "cases.json [": "cases.json is not whole JSON (",
    'cases.json ["reverse_model"]': 'cases.json names the task "reverse_model"; it must be among duplicate_remover_',
    'cases.json ["left_greater_model", "left_greater_model"]': "cases.json names a task twice: left_greater_model, ",
}


@pytest.mark.parametrize(("wrong", "words"), DAMAGED.items(), ids=tuple(DAMAGED))
def test_a_folder_that_is_no_such_model_is_refused_in_one_line(wrong, words, tmp_path):
    folder = damaged(tmp_path / "cases_1+2", wrong)
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        read_published(folder)
    assert "\n" not in str(refused.value)


def test_a_folder_of_one_task_must_have_its_name(tmp_path):
    publish(tmp_path / "left_greater_model")
    (tmp_path / "left_greater_model").rename(tmp_path / "mine")
    message = f'{tmp_path}/mine has no cases.json, and its name names the task "mine"; it must be among '
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read_published(tmp_path / "mine")
