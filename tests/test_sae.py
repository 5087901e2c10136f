"""The kinds of SAE against NumPy by hand, their training in lanes, and their files, which SAELens reads."""

import json
import re
import warnings
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.stages import Lowered
from safetensors.numpy import load_file, save_file

from siitjax.analysis.sae.dictionary import neurons, of_sae, principal, random_directions
from siitjax.analysis.sae.file import load_sae, save_sae
from siitjax.analysis.sae.kinds import BANDWIDTH, KINDS, SAE, W_AUX, above, init_sae, jump, largest, select_latents
from siitjax.analysis.sae.site import Site
from siitjax.analysis.sae.train import RESAMPLE_EVERY, Activity, Lane, SAEConfig, folded, prepare, train
from tests.engine import compile_as_users

D_IN, N_LATENTS, TOKENS = 5, 9, 20
SPARSITY = {"standard": 0.2, "topk": 3.0, "jumprelu": 0.2, "gated": 0.2}
X = np.random.default_rng(0).normal(size=(TOKENS, D_IN)).astype(np.float32)
ALIVE = jnp.zeros(N_LATENTS, bool)
ONE = jnp.float32(1)
SITE = Site("hook_z", 1, 3)


def random_sae(kind: str, seed: int = 1):
    """An SAE whose every weight is random, so that none can be left out unseen."""
    sae = init_sae(kind, jnp.zeros(D_IN), N_LATENTS, jnp.float32(SPARSITY[kind]), key=jax.random.key(seed))
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), sae)
    return eqx.tree_at(lambda s: s.sparsity, moved, sae.sparsity)


def by_hand(kind: str, sae, x, dead=()):
    """Latents and loss, as the papers have them."""
    w = {name: np.asarray(value, float) for name, value in vars(sae).items()}
    held = (x - w["b_dec"]) @ w["W_enc"]
    norms = np.sqrt((w["W_dec"] ** 2).sum(1))
    rebuilt = lambda latents: latents @ w["W_dec"] + w["b_dec"]
    error = lambda a, b: ((a - b) ** 2).sum(1).mean()
    if kind == "gated":
        gates = held + w["b_gate"]
        latents = (gates > 0) * np.maximum(held * np.exp(w["r_mag"]) + w["b_mag"], 0)
        positive = np.maximum(gates, 0)
        extra = SPARSITY[kind] * (positive * norms).sum(1).mean() + error(x, rebuilt(positive))
    elif kind == "standard":
        latents = np.maximum(held + w["b_enc"], 0)
        extra = SPARSITY[kind] * (latents * norms).sum(1).mean()
    elif kind == "jumprelu":
        latents = np.where(held + w["b_enc"] > np.exp(w["log_threshold"]), held + w["b_enc"], 0)
        extra = SPARSITY[kind] * (latents > 0).sum(1).mean()
    else:
        held = held + w["b_enc"]
        latents = np.zeros_like(held)
        revived = np.zeros_like(held)
        for row, out, back in zip(held, latents, revived, strict=True):
            for i in np.argsort(row)[-3:]:
                out[i] = max(row[i], 0)
            for i in dead:
                back[i] = max(row[i], 0)
        extra = W_AUX * error(x - rebuilt(latents), revived @ w["W_dec"]) if len(dead) else 0
    return latents, error(x, rebuilt(latents)) + extra


@pytest.mark.parametrize("kind", KINDS)
def test_latents_and_losses_are_those_of_the_papers(kind):
    sae = random_sae(kind)
    latents, loss = by_hand(kind, sae, X)
    found, own = jax.jit(lambda sae, x: sae.loss(x, ALIVE, ONE))(sae, jnp.asarray(X))
    np.testing.assert_allclose(own, latents, atol=1e-5)
    np.testing.assert_allclose(sae.encode(jnp.asarray(X)), latents, atol=1e-5)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert 0 < (latents > 0).mean() < 1
    np.testing.assert_allclose(of_sae(sae).encode(jnp.asarray(X)), latents, atol=1e-5)
    np.testing.assert_allclose(of_sae(sae).padded(12).encode(jnp.asarray(X))[:, :N_LATENTS], latents, atol=1e-5)
    assert not of_sae(sae).padded(12).encode(jnp.asarray(X))[:, N_LATENTS:].any()


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated"])
def test_the_sparsity_term_grows_with_its_warmth(kind):
    sae = random_sae(kind)
    at = [float(sae.loss(jnp.asarray(X), ALIVE, jnp.float32(warmth))[0]) for warmth in (0, 0.5, 1)]
    assert at[0] < at[1] < at[2]
    np.testing.assert_allclose(at[1] - at[0], at[2] - at[1], rtol=1e-4)


def test_topk_has_dead_latents_rebuild_the_error():
    sae, dead = random_sae("topk"), jnp.zeros(N_LATENTS, bool).at[jnp.array([2, 7])].set(True)
    np.testing.assert_allclose(
        sae.loss(jnp.asarray(X), dead, ONE)[0], by_hand("topk", sae, X, dead=(2, 7))[1], rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["standard", "topk", "gated"])
def test_gradients_are_those_of_finite_differences(kind):
    sae = random_sae(kind)
    loss = lambda sae: sae.loss(jnp.asarray(X), ALIVE, ONE)[0]
    gradient = jax.grad(loss)(sae)
    assert float(gradient.sparsity) == 0
    at = (1, 4)
    for name in ("W_enc", "W_dec") if kind != "gated" else ("W_enc",):
        moved = lambda step, name=name: eqx.tree_at(
            lambda s: getattr(s, name), sae, getattr(sae, name).at[at].add(step)
        )
        expected = (by_hand(kind, moved(1e-3), X)[1] - by_hand(kind, moved(-1e-3), X)[1]) / 2e-3
        np.testing.assert_allclose(getattr(gradient, name)[at], expected, rtol=2e-2, atol=1e-3)


def test_the_gated_auxiliary_loss_does_not_train_the_decoder():
    sae = random_sae("gated")
    gradient = jax.grad(lambda sae: sae.loss(jnp.asarray(X), ALIVE, ONE)[0])(sae)
    rebuilt = jax.grad(lambda sae: jnp.square(X - sae.decode(sae.encode(jnp.asarray(X)))).sum(1).mean())(sae)
    np.testing.assert_allclose(gradient.W_dec, rebuilt.W_dec, atol=1e-5)


def test_thresholds_learn_by_the_papers_estimate():
    held = jnp.array([[0.5, 1.0], [0.51, 3.0], [0.2, 0.99]], jnp.float32)
    threshold = jnp.array([0.5, 1.0], jnp.float32)
    weight = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    near = np.array([[1, 1], [1, 0], [0, 1]]) / BANDWIDTH
    value, back = jax.vjp(jump, held, threshold)
    np.testing.assert_allclose(value, [[0, 0], [0.51, 3], [0, 0]])
    own, by_threshold = back(jnp.asarray(weight, jnp.float32))
    np.testing.assert_allclose(own, weight * [[0, 0], [1, 1], [0, 0]])
    np.testing.assert_allclose(by_threshold, -np.array([0.5, 1.0]) * (near * weight).sum(0), rtol=1e-5)
    value, back = jax.vjp(above, held, threshold)
    np.testing.assert_allclose(value, [[0, 0], [1, 1], [0, 0]])
    own, by_threshold = back(jnp.asarray(weight, jnp.float32))
    assert not own.any()
    np.testing.assert_allclose(by_threshold, -(near * weight).sum(0), rtol=1e-5)


def test_the_largest_are_kept_where_they_are_positive():
    held = jnp.array([[3.0, -1.0, 2.0, 1.0], [-1.0, -2.0, 0.5, -3.0]], jnp.float32)
    np.testing.assert_array_equal(largest(held, jnp.float32(2)), [[3, 0, 2, 0], [0, 0, 0.5, 0]])
    np.testing.assert_array_equal(largest(held, jnp.float32(9)), [[3, 0, 2, 1], [0, 0, 0.5, 0]])


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_latents_take_all_their_weights_along(kind):
    one, other = random_sae(kind, 1), random_sae(kind, 2)
    where = jnp.zeros(N_LATENTS, bool).at[3].set(True)
    mixed = select_latents(where, one, other)
    both = [of_sae(sae).encode(jnp.asarray(X)) for sae in (eqx.tree_at(lambda s: s.b_dec, one, other.b_dec), other)]
    if kind != "topk":  # there latents compete
        expected = jnp.where(where[None], *both)
        np.testing.assert_allclose(mixed.encode(jnp.asarray(X)), expected, atol=1e-6)
    np.testing.assert_array_equal(mixed.W_dec[3], one.W_dec[3])
    np.testing.assert_array_equal(mixed.W_dec[4], other.W_dec[4])


def sparse_tokens(n: int, rng: np.random.Generator):
    """Tokens in each of which some of six orthogonal directions are present, and the directions."""
    directions = np.linalg.qr(rng.normal(size=(8, 8)))[0][:6]
    present = rng.random((n, 6)) < 0.25
    return (present * rng.uniform(0.5, 1.5, (n, 6))) @ directions + 0.7, directions


def lanes_of(kind: str) -> Lane:
    weight = {"standard": 0.2, "topk": 2.0, "jumprelu": 0.2, "gated": 0.6}[kind]
    sparsity = jnp.array([weight, 2 * weight, weight], jnp.float32)
    return Lane(jnp.array([0, 1, 1], jnp.int32), jnp.array([0, 1, 2], jnp.int32), sparsity)


@cache
def activities() -> Activity:
    both = [prepare(sparse_tokens(2_048, np.random.default_rng(seed))[0].astype(np.float32)) for seed in (0, 1)]
    return jax.tree.map(lambda *x: jnp.stack(x), *both)


def assert_found(saes: SAE, lanes: Lane) -> None:
    """The first and the last lane have most directions of what they were trained on."""
    for i in (0, 2):
        _, directions = sparse_tokens(2_048, np.random.default_rng(int(lanes.data[i])))
        near = np.abs(directions @ np.asarray(saes.W_dec[i]).T).max(1)
        assert np.median(near) > 0.9, near


@pytest.mark.parametrize("kind", KINDS)
def test_training_finds_directions_and_a_lane_is_what_it_is_alone(kind, monkeypatch):
    if kind == "standard":  # whose bits are compared
        monkeypatch.setattr(Lowered, "compile", compile_as_users)
    config = SAEConfig(kind, 8, n_latents=8, steps=600, batch_size=64, lr=5e-3)
    activity, lanes = activities(), lanes_of(kind)
    saes = train(config, activity, lanes)(lanes)
    assert_found(saes, lanes)
    np.testing.assert_allclose(np.linalg.norm(saes.W_dec, axis=2), 1, atol=1e-5)
    assert not np.array_equal(saes.W_enc[1], saes.W_enc[2])
    if kind == "standard":
        alone = jax.tree.map(lambda x: x[2:], lanes)
        solo = train(config, activity, alone)(alone)
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[2:], y), saes, solo)
    if kind == "topk":
        # Side by side XLA adds in another order, which 600 steps make visible; k differs from lane to lane.
        beside = train(config, activity, lanes, batching="vmap")(lanes)
        assert_found(beside, lanes)
        assert (np.abs(np.asarray(beside.W_dec - saes.W_dec)) < 1e-2).mean() > 0.9


def test_dead_latents_are_resampled():
    config = SAEConfig("standard", 8, n_latents=12, steps=2 * RESAMPLE_EVERY, batch_size=64, lr=1e-8)
    activity, lanes = activities(), lanes_of("standard")
    # A bias far from every token leaves latents that never are active.
    far = eqx.tree_at(lambda a: a.centre, activity, activity.centre + 30 * jnp.eye(8)[:1])
    saes = train(config, far, lanes)(lanes)
    first = [
        init_sae(
            "standard",
            far.centre[lanes.data[i]],
            12,
            ONE,
            key=jax.random.fold_in(jax.random.key(int(lanes.seed[i])), 0),
        )
        for i in range(3)
    ]
    for i in range(3):
        tokens = far.tokens[lanes.data[i]] - far.centre[lanes.data[i]][None]
        was_dead = ~np.asarray((tokens @ first[i].W_enc > 0).any(0))
        moved = np.abs(np.asarray(saes.W_dec[i] - first[i].W_dec)).max(1) > 1e-3
        assert 0 < was_dead.sum() < 12
        np.testing.assert_array_equal(moved, was_dead)
        directions = np.asarray(tokens / jnp.linalg.norm(tokens, axis=1, keepdims=True))
        np.testing.assert_allclose((np.asarray(saes.W_dec[i])[was_dead] @ directions.T).max(1), 1, atol=1e-4)


def test_preparing_scales_and_finds_the_geometric_median():
    # Of four points at the corners of a convex quadrangle it is where the diagonals cross.
    corners = np.array([[0, 0], [4, 0], [5, 5], [0, 4]], np.float32)
    activity = prepare(corners)
    assert float(jnp.square(activity.tokens - activity.tokens.mean(0)[None]).sum(1).mean()) == pytest.approx(
        1, rel=1e-5
    )
    np.testing.assert_allclose(activity.centre / activity.scale, [2, 2], atol=1e-2)
    with pytest.raises(ValueError, match="the same for every token"):
        prepare(np.ones((5, 3), np.float32))


def test_folding_takes_the_scale_back():
    sae, scale = random_sae("jumprelu"), jnp.float32(2.5)
    whole = folded(sae, scale)
    np.testing.assert_allclose(whole.encode(jnp.asarray(X) / scale), sae.encode(jnp.asarray(X)), atol=1e-5)
    latents = sae.encode(jnp.asarray(X))
    np.testing.assert_allclose(whole.decode(latents), sae.decode(latents) / scale, atol=1e-5)


def test_controls_rebuild_what_they_can():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 6)).astype(np.float32)
    for control in (neurons(x), neurons(np.abs(x)), principal(x, 12)):
        held = np.abs(x) if len(control.W_dec) == 6 else x
        np.testing.assert_allclose(control.decode(control.encode(jnp.asarray(held))), held, atol=1e-4)
    two = principal(x @ np.diag([9, 5, 1, 1, 1, 1]).astype(np.float32), 4)
    assert np.abs(two.W_dec[0, 0]) > 0.9
    assert np.abs(two.W_dec[1, 1]) > 0.9
    found = random_directions(x, 40, rng)
    error = found.decode(found.encode(jnp.asarray(x))) - x
    assert np.square(error).sum() < 0.01 * np.square(x - x.mean(0)).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_saelens_loads_what_is_saved_and_encodes_and_decodes_alike(kind, tmp_path):
    sae = random_sae(kind)
    save_sae(tmp_path, sae, SITE, "1+2", 16, {"seed": 4})
    again = load_sae(tmp_path)
    assert type(again) is type(sae)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), again, sae)
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        # SAELens 6 imports names of TransformerLens that are to go in its version 4.
        warnings.simplefilter("ignore", DeprecationWarning)
        sae_lens = pytest.importorskip("sae_lens")
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    with torch.no_grad():
        latents = theirs.encode(torch.tensor(X))
        rebuilt = theirs(torch.tensor(X))
    np.testing.assert_allclose(latents.numpy(), sae.encode(jnp.asarray(X)), atol=1e-5)
    np.testing.assert_allclose(rebuilt.numpy(), sae.decode(sae.encode(jnp.asarray(X))), atol=1e-5)
    metadata = theirs.cfg.metadata
    assert (metadata.hook_name, metadata.hook_head_index) == ("blocks.1.attn.hook_z", 3)
    assert (metadata.model_name, metadata.context_size, metadata.siitjax["seed"]) == ("1+2", 16, 4)
    theirs.save_model(tmp_path / "theirs")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), load_sae(tmp_path / "theirs"), again)


def test_what_is_no_sae_is_told_in_one_line(tmp_path):
    save_sae(tmp_path / "good", random_sae("gated"), SITE, "1+2", 16, {})

    def damaged(name, config=None, weights=None):
        folder = tmp_path / name
        save_sae(folder, random_sae("gated"), SITE, "1+2", 16, {})
        if config:
            found = json.loads((folder / "cfg.json").read_text())
            (folder / "cfg.json").write_text(json.dumps(found | config))
        if weights:
            save_file(weights(load_file(folder / "sae_weights.safetensors")), folder / "sae_weights.safetensors")
        return folder

    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "cfg.json").write_text('{"architecture": ')
    without = lambda w: {name: x for name, x in w.items() if name != "b_mag"}
    refused = {
        tmp_path / "none": "holds no whole SAE",
        tmp_path / "torn": "holds no whole SAE",
        damaged("other", {"architecture": "temporal"}): 'is of architecture "temporal"; ours are standard, topk,',
        damaged("normalised", {"normalize_activations": "layer_norm"}): "normalize_activations layer_norm; ours are",
        damaged("fewer", weights=without): "holds the weights W_dec, W_enc, b_dec, b_gate, r_mag; gated has W_dec,",
    }
    for folder, words in refused.items():
        with pytest.raises(ValueError, match=re.escape(words)) as caught:
            load_sae(folder)
        assert "\n" not in str(caught.value)


def test_bad_configs_are_told():
    for given, words in (
        ({"kind": "topc"}, 'kind is "topc"; did you mean "topk"?'),
        ({"steps": 0}, "steps is 0; it must be greater than 0"),
        ({"lr": -1.0}, "lr is -1.0; it must be greater than 0"),
        ({"n_latents": 0}, "n_latents is 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            SAEConfig(**{"kind": "topk", "d_in": 4, **given})
    config = SAEConfig("topk", 8, batch_size=4_000)
    with pytest.raises(ValueError, match="batch_size is 4000, but there are 2048 tokens; lower batch_size"):
        train(config, activities(), lanes_of("topk"))


@pytest.mark.parametrize("kind", KINDS)
def test_saelens_is_timed_on_the_same_sae(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pytest.importorskip("sae_lens")
    from siitjax.bench.saelens_peer import saelens_seconds, saelens_trainer

    config = SAEConfig(kind, D_IN, n_latents=N_LATENTS, steps=40, batch_size=4)
    assert saelens_seconds(config, SPARSITY[kind], X, 1, steps=4) > 0
    theirs = saelens_trainer(config, SPARSITY[kind], X, 4)
    assert (theirs.sae.cfg.architecture(), theirs.sae.W_dec.shape) == (kind, (N_LATENTS, D_IN))
    assert theirs.cfg.total_training_steps == 4
    weight = {"topk": "k", "jumprelu": "l0_coefficient"}.get(kind, "l1_coefficient")
    assert getattr(theirs.sae.cfg, weight) == SPARSITY[kind]
