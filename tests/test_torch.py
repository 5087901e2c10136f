"""Our models in torch: every loader gives what JAX gives, and gives the weights back; a case's strings, labels and
counterfactuals as torch has them; and what is refused."""

import re
import sys
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

import cases
import siitjax.torch
from siitjax.causal.circuit import Variable
from siitjax.causal.loss import SquaredError
from siitjax.model.nodes import head, mlp
from siitjax.model.weights import save_weights, state_dict, with_weights
from siitjax.torch import CaseDataset, TorchTransformer, draw_datasets, interchanges, to_bridge, to_torch, tokenizer
from siitjax.torch.source import transformer
from tests import parity
from tests.commands import run
from tests.hooked import RELU, VARIANTS
from tests.parity import (
    EXACT,
    HAS_HOOKED,
    LOADERS,
    TOLERANCE,
    differences,
    in_float64,
    random_model,
    random_tokens,
    same_bits,
    swaps,
)

torch.set_num_threads(1)

with_hooked = pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
MODELS = {
    "attn_only": VARIANTS["attn_only"],
    "gelu_no_layer_norm": replace(VARIANTS["no_layer_norm"], act_fn="gelu"),
    "bidirectional": VARIANTS["bidirectional"],
    "1+2": cases.build("1+2").config,
}
every_model = pytest.mark.parametrize("config", MODELS.values(), ids=tuple(MODELS))
LEFT_GREATER, COMBINED = cases.find("left_greater"), cases.build("1+2")


@every_model
def test_every_loader_gives_what_jax_gives_at_every_site_and_under_every_swap(config):
    inputs = random_tokens(config, 32), random_tokens(config, 32, seed=1)
    found = differences(random_model(config), *inputs, swaps(config.nodes))
    assert found.keys() == LOADERS.keys()
    for name, difference in found.items():
        assert max(difference) <= TOLERANCE, name
        assert difference.patched > 0, name  # something was compared


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["shipped", "random"])
def test_all_shipped_models_give_what_jax_gives_on_a_thousand_samples(weights):
    ended = run("-W", "ignore", "-m", "tests.parity", f"--weights={weights}")
    assert ended.code == 0, ended.out + ended.err


def test_in_float64_nothing_is_left_of_the_difference():
    config = MODELS["gelu_no_layer_norm"]
    base, source = random_tokens(config, 4), random_tokens(config, 4, seed=1)
    assert in_float64(random_model(config), base, source) < EXACT


def test_the_comparison_sees_a_weight_that_is_a_little_off(monkeypatch):
    load = LOADERS["torch"]
    off = {"off": lambda model: load(jax.tree.map(lambda w: w * 1.001, model))}
    monkeypatch.setattr(parity, "LOADERS", off)
    config = MODELS["attn_only"]
    base, source = random_tokens(config, 4), random_tokens(config, 4, seed=1)
    found = differences(random_model(config), base, source, swaps(config.nodes))
    assert min(found["off"]) > 10 * TOLERANCE


@every_model
def test_a_round_trip_gives_the_same_bits_and_shape(config):
    model = random_model(config)
    assert same_bits(model)
    if HAS_HOOKED:
        there_and_back = siitjax.torch.from_hooked_transformer(siitjax.torch.to_hooked_transformer(model))
        assert there_and_back.config == replace(config, init_gain=1.0, mlp_parts=1)  # of parts it knows nothing
    weights = {name: weight.detach().numpy() for name, weight in to_torch(model).state_dict().items()}
    assert weights.keys() == state_dict(model).keys()
    back = with_weights(jax.tree.map(jnp.zeros_like, model), weights)
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(back), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_the_plain_module_takes_the_file_as_it_is_and_can_be_trained(tmp_path):
    save_weights(tmp_path / "model.safetensors", random_model(RELU))
    module = TorchTransformer(RELU)
    module.load_state_dict(load_file(tmp_path / "model.safetensors"))
    logits, _ = module(torch.zeros(2, 7, dtype=torch.long))
    logits.square().mean().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_loader_takes_a_transformer_a_folder_a_file_or_a_name(tmp_path):
    model = random_model(RELU)
    save_weights(tmp_path / "model.safetensors", model)
    for source in (model, tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        assert transformer(source).config == RELU
    with pytest.raises(ValueError, match=r'is "left_greter"; did you mean "left_greater"\?'):
        to_torch("left_greter")
    with pytest.raises(ValueError, match=r"nothing is not a model: there is no such file or folder"):
        to_torch(tmp_path / "nothing")


def changed(**changes):
    """A HookedTransformer whose config says something else than it should."""
    made = siitjax.torch.to_hooked_transformer(random_model(RELU))
    for name, value in changes.items():
        setattr(made.cfg, name, value)
    return made


@with_hooked
def test_a_hooked_transformer_of_another_kind_is_refused_and_all_of_it_named():
    message = "this HookedTransformer is not of our kind: it has use_attn_scale False, not True; act_fn silu, not relu"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        siitjax.torch.from_hooked_transformer(changed(act_fn="silu", use_attn_scale=False))
    with pytest.raises(ValueError, match=r"normalization_type LNPre, not LN or None"):
        siitjax.torch.from_hooked_transformer(changed(normalization_type="LNPre"))


@with_hooked
def test_a_hooked_transformer_with_nan_is_refused():
    made = changed()
    with torch.no_grad():
        dict(made.named_parameters())["blocks.1.mlp.b_in"][0] = torch.nan
    with pytest.raises(ValueError, match=r"they hold NaN or infinite numbers in blocks\.1\.mlp\.b_in$"):
        siitjax.torch.from_hooked_transformer(made)


@with_hooked
def test_a_checkpoint_of_another_vocabulary_is_what_a_case_starts_from(tmp_path):
    """One shaped like GPT-2, from disk: more tokens, a longer context, gelu_new."""
    case = replace(LEFT_GREATER, n_ctx=6, d_model=6, d_head=2, act_fn="gelu_new")
    big = replace(case.config, d_vocab=50, d_vocab_out=50, n_ctx=32, init_gain=1.0)
    hooked = siitjax.torch.to_hooked_transformer(random_model(big))
    torch.save(hooked.state_dict(), tmp_path / "checkpoint.pt")
    again = siitjax.torch.to_hooked_transformer(random_model(big, seed=1))
    again.load_state_dict(torch.load(tmp_path / "checkpoint.pt"))
    ids, outputs = [49, 0, 7, 8], [3, 5, 4]
    start = siitjax.with_vocabulary(siitjax.torch.from_hooked_transformer(again), case, ids, outputs)
    strings, _ = case.draw(20, 5, np.random.default_rng(0))
    with torch.no_grad():
        theirs = hooked(torch.tensor(np.asarray(ids)[strings]), prepend_bos=False)[..., outputs].numpy()
    ours, _ = jax.vmap(start)(jnp.asarray(strings))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    small = {"epochs": 1, "samples": 60, "batch_size": 16, "progress": False, "lr_start": 1e-30, "lr_end": 0.0}
    trained = siitjax.train(case, start=start, **small).model
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), state_dict(trained), state_dict(start))


@pytest.mark.parametrize(
    ("ids", "outputs", "said"),
    [
        ([0, 1, 2, 3], None, "has 2 outputs and 4 tokens, so that its classes are not its tokens; give outputs"),
        ([0, 1, 2], [0, 1], "ids has 3 numbers, but the case left_greater has 4; give one for each"),
        ([0, 1, 2, 50], [0, 1], "ids has the number 50, but the transformer has 50, counted from 0"),
        ([0, 1, 2, 3], [0, -1], "outputs has the number -1, but the transformer has 50, counted from 0"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(ids, outputs, said):
    case = replace(LEFT_GREATER, n_outputs=2)
    model = random_model(replace(case.config, d_vocab=50, d_vocab_out=50))
    with pytest.raises(ValueError, match=re.escape(said)):
        siitjax.with_vocabulary(model, case, ids, outputs)


def test_what_is_not_installed_is_told_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    monkeypatch.delitem(sys.modules, "siitjax.torch.hooked", raising=False)
    message = (
        "siitjax.torch.to_hooked_transformer needs transformer_lens, which is not installed; "
        "pip install 'siitjax[torch]' brings it"
    )
    with pytest.raises(ModuleNotFoundError, match=f"^{re.escape(message)}$"):
        siitjax.torch.to_hooked_transformer  # noqa: B018


def test_what_transformer_lens_4_has_no_more_is_told_with_what_replaces_it(monkeypatch):
    without = ModuleType("transformer_lens")

    def removed(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{name!r} was removed in TransformerLens 4.0.", name=name)

    vars(without)["__getattr__"] = removed
    monkeypatch.setitem(sys.modules, "transformer_lens", without)
    monkeypatch.delitem(sys.modules, "siitjax.torch.hooked", raising=False)
    with pytest.raises(
        ImportError, match=r"needs HookedTransformer, which TransformerLens 4 has no more; use to_bridge"
    ):
        siitjax.torch.to_hooked_transformer  # noqa: B018


def test_a_name_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(
        AttributeError, match=r"siitjax\.torch has no to_tensorflow; it has TorchTransformer, to_torch, "
    ):
        siitjax.torch.to_tensorflow  # noqa: B018


def test_the_tokenizer_spells_as_the_case_does(tmp_path):
    words = tokenizer(LEFT_GREATER)
    assert words("( ( )")["input_ids"] == LEFT_GREATER.tokens("(()").tolist() == [0, 2, 2, 3]
    assert words.decode([0, 2, 3, 1]) == "BOS ( ) PAD"
    padded = words(["( (", ")"], padding="max_length", return_tensors="pt")["input_ids"]
    assert padded.tolist() == [[0, 2, 2, *12 * [1]], [0, 3, *13 * [1]]]
    words.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("( ( )")["input_ids"] == [0, 2, 2, 3]


TEXTS = {
    "left_greater": (LEFT_GREATER, "( ( )"),
    "1+2": (COMBINED, "paren_checker: BOS ( )"),
}


@pytest.fixture
def no_hub(monkeypatch):
    """TransformerLens would ask it for a tokenizer that puts BOS first."""

    def ask(name, *_, **__):
        raise AssertionError(f"the hub was asked for {name}")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", ask)


@pytest.mark.parametrize(("case", "text"), TEXTS.values(), ids=TEXTS)
def test_transformer_lens_takes_the_tokenizer_and_asks_no_hub(case, text, no_hub):
    tokens = case.tokens([word for word in text.split() if word != "BOS"]).tolist()
    model = random_model(case.config)
    bridge = to_bridge(model)
    bridge.tokenizer = tokenizer(case)
    takers: list[Any] = [bridge]
    if HAS_HOOKED:
        takers.append(siitjax.torch.to_hooked_transformer(model))
        takers[-1].set_tokenizer(tokenizer(case))
    logits, _ = to_torch(model)(torch.tensor([tokens]))
    for taker in takers:
        assert taker.to_tokens(text).tolist() == [tokens]
        assert taker.to_tokens([text, text]).tolist() == [tokens, tokens]
        torch.testing.assert_close(taker(text), logits, atol=TOLERANCE, rtol=0)


REFUSED_TEXTS = [
    (LEFT_GREATER, "( a )", '"a" is not a token of left_greater; those are BOS PAD ( )'),
    (LEFT_GREATER, "BOS ( )", '"BOS ( )" would have BOS twice: it is put before a text; write "( )"'),
    (COMBINED, "left_greater: ( )", '"left_greater: ( )" has no BOS; write "left_greater: BOS ( )"'),
    (
        COMBINED,
        "( )",
        '"( )" does not begin with left_greater: or paren_checker:; write, say, "left_greater: BOS ( )"',
    ),
    (
        COMBINED,
        "left_greter: BOS (",
        '"left_greter:" is not a token of left_greater+paren_checker; '
        "those are BOS PAD ( ) left_greater: paren_checker:",
    ),
]


@pytest.mark.parametrize(("case", "text", "message"), REFUSED_TEXTS, ids=[text for _, text, _ in REFUSED_TEXTS])
def test_a_text_that_the_case_cannot_spell_is_refused_and_its_word_named(case, text, message):
    words, exactly = tokenizer(case), f"^{re.escape(message)}$"
    with pytest.raises(ValueError, match=exactly):
        words(text)
    with pytest.raises(ValueError, match=exactly):
        words(["", text], padding=True)
    with pytest.raises(ValueError, match=exactly):
        words(text.split(), is_split_into_words=True)


def test_a_part_of_a_sample_needs_no_bos_and_no_task():
    assert tokenizer(COMBINED)("( )", add_special_tokens=False)["input_ids"] == [2, 3]


def greater(tokens: list[int]) -> list[int]:
    """left_greater in plain Python: at each token, whether more of 2 than of 3 have come; 2 at BOS."""
    heights = accumulate({2: 1, 3: -1}.get(token, 0) for token in tokens)
    return [2 if token == 0 else int(height > 0) for token, height in zip(tokens, heights, strict=True)]


def test_a_dataset_gives_samples_and_their_labels_to_a_loader():
    train, validation = draw_datasets(LEFT_GREATER, 40, 10, seed=1)
    assert (len(train), len(validation)) == (40, 10)
    assert not {tuple(row) for row in train.tokens.tolist()} & {tuple(row) for row in validation.tokens.tolist()}
    for tokens, labels in DataLoader(train, batch_size=8):
        assert labels.tolist() == [greater(row) for row in tokens.tolist()]
    again, _ = draw_datasets(LEFT_GREATER, 40, 10, seed=1)
    assert torch.equal(again.tokens, train.tokens)


def test_labels_that_do_not_count_are_left_out_by_torchs_cross_entropy():
    samples = np.array([[*COMBINED.tokens(["left_greater:", "(", ")"]).tolist(), 1]], np.int32)
    (tokens, labels), *_ = CaseDataset(COMBINED, samples)
    assert labels.tolist() == [-100, 2, 1, 0, -100]
    logits = torch.zeros(5, 3)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(np.log(3))
    assert tokens.dtype == labels.dtype == torch.long


def test_labels_that_are_numbers_are_nan_where_they_do_not_count():
    height = Variable("height", ("tokens",), lambda tokens: jnp.stack([jnp.where(tokens == 2, 0.5, 2.0)], -1), mlp(0))
    case = replace(LEFT_GREATER, variables=(height,), loss=SquaredError(), n_outputs=1, n_ctx=4)
    _, labels = CaseDataset(case, np.array([[0, 2, 3, 1]], np.int32))[0]
    np.testing.assert_array_equal(labels, [[2.0], [0.5], [2.0], [np.nan]])


def test_interchanges_pair_every_sample_and_give_the_circuits_answers():
    dataset, _ = draw_datasets(LEFT_GREATER, 60, 10)
    batches = list(interchanges(dataset, 8, seed=5))
    assert {batch.node for batch in batches} == {head(0, 1), mlp(0)}
    for side in ("base", "source"):
        seen = torch.cat([getattr(batch, side) for batch in batches])
        assert sorted(seen.tolist()) == sorted(dataset.tokens.tolist())
    for batch in batches:
        # Either node holds all that the answer depends on, BOS apart, so the answer is the source's.
        assert batch.label.tolist() == [greater(row) for row in batch.source.tolist()]
    for batch in interchanges(dataset, 20, nodes=[head(0, 0)]):
        assert batch.label.tolist() == [greater(row) for row in batch.base.tolist()]
    again = list(interchanges(dataset, 8, seed=5))
    assert all(torch.equal(a.base, b.base) and a.node == b.node for a, b in zip(batches, again, strict=True))


def test_an_interchange_is_what_the_plain_modules_swap_takes():
    module = to_torch(random_model(LEFT_GREATER.config))
    dataset, _ = draw_datasets(LEFT_GREATER, 20, 10)
    for batch in interchanges(dataset, 20):
        _, held = module(batch.source)
        logits, patched = module(batch.base, ([batch.node], held))
        name = batch.node.hook.split("[")[0]
        part = ... if batch.node.head is None else (slice(None), slice(None), batch.node.head)
        assert torch.equal(patched[name][part], held[name][part])
        assert logits.shape[:2] == batch.label.shape


def test_interchanges_at_a_node_that_is_not_there_are_refused_before_any_is_made():
    dataset, _ = draw_datasets(LEFT_GREATER, 20, 10)
    with pytest.raises(ValueError, match=r"there is no node L2H0; the nodes are embed, L0H0, L0H1, L0H2, L0H3, MLP0$"):
        interchanges(dataset, 8, nodes=[head(2, 0)])
    with pytest.raises(ValueError, match=r"^batch_size is 0; it must be at least 1$"):
        interchanges(dataset, 0)


def test_a_swap_that_the_plain_module_cannot_make_is_refused():
    module = to_torch(random_model(LEFT_GREATER.config))
    tokens = torch.zeros(2, 5, dtype=torch.long)
    _, held = module(tokens)
    with pytest.raises(ValueError, match=r"^there is no node L2H0; the nodes are embed, L0H0, L0H1, L0H2, L0H3, MLP0$"):
        module(tokens, ([mlp(0), head(2, 0)], held))
    for other, shape in ((tokens[:1], "(1, 5, 48)"), (tokens[:, :1], "(2, 1, 48)")):
        message = f"the source's blocks.0.mlp.hook_post has shape {shape}, the base's (2, 5, 48); they must be alike"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            module(tokens, ([mlp(0)], module(other)[1]))


def test_the_code_that_the_readme_shows_for_torch_runs():
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.DOTALL)
    (shown,) = [block for block in blocks if "siitjax.torch" in block]
    found: dict = {}
    exec(shown, found)
    assert found["tokens"].tolist() == [COMBINED.tokens(["left_greater:", "(", ")", "("]).tolist()]
    logits, held = to_torch("1+2")(found["tokens"])
    torch.testing.assert_close(found["logits"], logits, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found["cache"]["blocks.1.mlp.hook_post"], held["blocks.1.mlp.hook_post"])
