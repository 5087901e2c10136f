"""Our models through SAELens' own training path: what it trains is saved in its format, loaded again, and scored."""

import json
import re
import signal
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

with warnings.catch_warnings():
    # SAELens 6 imports names of TransformerLens that are to go in its version 4.
    warnings.simplefilter("ignore", DeprecationWarning)
    import sae_lens
    from sae_lens.evals import get_recons_loss
    from sae_lens.training.activation_scaler import ActivationScaler

import cases
from siitjax.analysis.sae.file import save_sae
from siitjax.analysis.sae.kinds import init_sae
from siitjax.analysis.sae.site import HOOKS, Site
from siitjax.model.nodes import head
from siitjax.torch import saelens_runner, sites, to_hooked_transformer, to_sae_transformer, to_torch, train_sae
from siitjax.torch.sae import SAETraining
from tests.parity import random_model

torch.set_num_threads(1)

CASE = cases.build("1+2")
MODEL = random_model(CASE.config)
SHORT = SAETraining(steps=300, batch_size=256, samples=1_000)
OUT = ["cfg.json", "runner_cfg.json", "sae_weights.safetensors", "sparsity.safetensors"]


def activations(site: str) -> torch.Tensor:
    """What the site holds at every token that is no pad, of samples that the SAE has not seen."""
    tokens = torch.from_numpy(CASE.draw(1_000, 200, np.random.default_rng(99))[1]).long()
    name, _, index = site.rstrip("]").partition("[")
    with torch.no_grad():
        _, cache = to_hooked_transformer(MODEL).run_with_cache(tokens)
    held = cache[name][:, :, int(index)] if index else cache[name]
    return held[tokens != 1].flatten(1)


@pytest.mark.parametrize("site", ["blocks.0.mlp.hook_post", "blocks.2.attn.hook_z[3]", "hook_embed"])
def test_what_saelens_trains_is_saved_loaded_again_and_explains_the_site(site, tmp_path):
    trained = train_sae(CASE, MODEL, site, training=SHORT, out=tmp_path / "sae")
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == OUT
    loaded = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    held = activations(site)
    with torch.no_grad():
        rebuilt = loaded(held)
        torch.testing.assert_close(loaded.encode(held), trained.encode(held), atol=1e-5, rtol=0)
    unexplained = (held - rebuilt).square().sum() / (held - held.mean(0)).square().sum()
    assert unexplained < 0.5
    metadata = json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == site.split("[")[0]
    assert metadata["hook_head_index"] == (3 if "[" in site else None)


SMALL = cases.find("duplicate_remover")
SMALL_MODEL = random_model(SMALL.config)
TOKENS = torch.from_numpy(SMALL.draw(8, 8, np.random.default_rng(7))[0]).long()
ONE_HEAD = "blocks.1.attn.hook_z[2]"
EVERY_HOOK = [site for site in sites(SMALL.config) if "[" not in site]


def replaced(site: str, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of TOKENS with an SAE at the site, computed from its weights alone: what is attached is not used."""
    hooked = to_hooked_transformer(SMALL_MODEL)
    name, _, index = site.rstrip("]").partition("[")

    def rebuilt(x: torch.Tensor) -> torch.Tensor:
        latents = torch.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])
        return latents @ weights["W_dec"] + weights["b_dec"]

    def hook(value, hook):
        if not index:
            return rebuilt(value.flatten(2)).reshape(value.shape)
        value = value.clone()
        value[:, :, int(index)] = rebuilt(value[:, :, int(index)])
        return value

    with torch.no_grad():
        return hooked.run_with_hooks(TOKENS, fwd_hooks=[(name, hook)])


@pytest.mark.parametrize("site", [*EVERY_HOOK, ONE_HEAD])
def test_what_is_saved_is_attached_by_saelens_at_every_hook(site, tmp_path):
    short = SAETraining(steps=2, batch_size=64, samples=40)
    train_sae(SMALL, SMALL_MODEL, site, training=short, out=tmp_path / "sae")
    loaded = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    expected = replaced(site, load_file(tmp_path / "sae" / "sae_weights.safetensors"))
    plain, _ = to_torch(SMALL_MODEL)(TOKENS)
    assert (expected - plain).abs().max() > 1e-2  # it is felt
    hooked = to_sae_transformer(SMALL_MODEL)
    with torch.no_grad():
        torch.testing.assert_close(hooked(TOKENS), plain, atol=1e-5, rtol=0)
        if site != ONE_HEAD:
            found = hooked.run_with_saes(TOKENS, saes=[loaded])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
            return
        # SAELens would attach it to all heads alike, but its evaluations use it at its own.
        scored = get_recons_loss(loaded, hooked, ActivationScaler(), TOKENS, compute_kl=True, compute_ce_loss=False)
    before, after = (logits.detach().log_softmax(-1) for logits in (plain, expected))
    divergence = (before.exp() * (before - after)).sum(-1)
    torch.testing.assert_close(scored["kl_div_with_sae"], divergence, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hook", HOOKS[1:])
def test_what_we_train_ourselves_is_attached_by_saelens_at_every_hook(hook, tmp_path):
    site = Site(hook, 0)
    width = site.width(SMALL.config)
    sae = init_sae("standard", jnp.full(width, 0.1), 2 * width, jnp.float32(1), key=jax.random.key(0))
    save_sae(tmp_path / "sae", sae, site, "duplicate_remover", 15, {})

    @jax.jit
    @jax.vmap
    def ours(tokens):
        _, activations = SMALL_MODEL(tokens)
        value = site.read(SMALL_MODEL, activations)
        return site.replaced(SMALL_MODEL, tokens, activations, sae.decode(sae.encode(value)))

    with torch.no_grad():
        found = to_sae_transformer(SMALL_MODEL).run_with_saes(
            TOKENS, saes=[sae_lens.SAE.load_from_disk(tmp_path / "sae")]
        )
    expected = np.asarray(ours(jnp.asarray(TOKENS.numpy(), jnp.int32)))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


def test_any_of_saelens_kinds_is_trained_and_the_seed_decides_it():
    kind = sae_lens.TopKTrainingSAEConfig(d_in=32, d_sae=48, k=4)
    first, again, other = (
        train_sae(CASE, MODEL, "blocks.0.hook_mlp_out", sae=kind, training=SAETraining(20, 128, samples=200, seed=seed))
        for seed in (0, 0, 1)
    )
    assert isinstance(first, sae_lens.TrainingSAE)
    assert ((first.encode(activations("blocks.0.hook_mlp_out")) > 0).sum(1) <= 4).all()
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)


def test_random_numbers_and_signals_are_left_as_they_were():
    before = torch.get_rng_state(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train_sae(CASE, MODEL, "hook_embed", training=SAETraining(steps=2, samples=50))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before[1:]


def test_pads_are_not_learned_from_and_samples_do_not_run_out():
    runner = saelens_runner(CASE, MODEL, "hook_embed", training=SAETraining(2, 64, samples=10))
    embedded = set(map(tuple, MODEL.embed.W_E.tolist()))
    pad = tuple(MODEL.embed.W_E[1].tolist())
    seen = [tuple(row) for _ in range(10) for row in runner.activations_store.next_batch().flatten(1).tolist()]
    assert len(seen) == 640
    assert set(seen) <= embedded - {pad}


def test_the_sites_are_those_that_transformer_lens_has_and_as_wide():
    tokens = torch.zeros(1, 4, dtype=torch.long)
    _, cache = to_hooked_transformer(MODEL).run_with_cache(tokens)
    for site, width in sites(CASE.config).items():
        name, _, index = site.rstrip("]").partition("[")
        held = cache[name][:, :, int(index)] if index else cache[name]
        assert held[0, 0].numel() == width, site
    assert head(1, 2).hook in sites(CASE.config)


def test_what_cannot_be_is_refused_in_one_line(tmp_path):
    message = f'the model has no site "hook_z"; its sites are {", ".join(sites(CASE.config))}'
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        saelens_runner(CASE, MODEL, "hook_z")
    kind = sae_lens.StandardTrainingSAEConfig(d_in=64, d_sae=48)
    message = "the SAE takes 64 numbers, but hook_embed holds 32; give it d_in=32"
    with pytest.raises(ValueError, match=f"^{message}$"):
        saelens_runner(CASE, MODEL, "hook_embed", sae=kind)
    message = "left_greater has 4 tokens in samples of 15, but the transformer is made for 6 in samples of 16; give the"
    with pytest.raises(ValueError, match=f"^{message}"):
        saelens_runner(cases.find("left_greater"), MODEL, "hook_embed")
    alike = replace(cases.load("1+2").case, counterfactual="frozen")  # another task may be of the same shape
    with pytest.raises(ValueError, match="was trained on another case: its counterfactual is "):
        saelens_runner(alike, "1+2", "hook_embed")
    with pytest.raises(ValueError, match="does not fit the case"):
        saelens_runner(cases.find("paren_checker"), "left_greater", "hook_embed")
    with pytest.raises(ValueError, match=r"exists, and nothing is replaced; choose another folder"):
        saelens_runner(CASE, MODEL, "hook_embed", out=tmp_path)
    with pytest.raises(ValueError, match=r"^steps is 0; it must be greater than 0$"):
        SAETraining(steps=0)
