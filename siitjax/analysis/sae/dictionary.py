"""Dictionaries as they are scored: SAEs of every kind in one form, and the controls beside them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siitjax.analysis.sae.kinds import SAE, Gated, JumpReLU, TopK, largest


class Dictionary(eqx.Module):
    """Directions, and which of them are active when: a latent is its magnitude where its gate is above the threshold.

    Attributes:
        k: of each token, this many of the largest latents; 0 for all.
    """

    W_enc: Float[Array, "d_in latent"]
    b_gate: Float[Array, " latent"]
    threshold: Float[Array, " latent"]
    gain: Float[Array, " latent"]
    b_mag: Float[Array, " latent"]
    W_dec: Float[Array, "latent d_in"]
    b_dec: Float[Array, " d_in"]
    k: Float[Array, ""]

    def encode(self, x: Float[Array, "token d_in"]) -> Float[Array, "token latent"]:
        """The latents of each token's activation."""
        held = (x - self.b_dec[None]) @ self.W_enc
        magnitudes = jax.nn.relu(held * self.gain[None] + self.b_mag[None])
        latents = jnp.where(held + self.b_gate[None] > self.threshold[None], magnitudes, 0.0)
        return jax.lax.cond(self.k > 0, lambda: largest(latents, self.k), lambda: latents)

    def decode(self, latents: Float[Array, "token latent"]) -> Float[Array, "token d_in"]:
        """The activation that the latents stand for."""
        return latents @ self.W_dec + self.b_dec[None]

    def padded(self, n_latents: int) -> "Dictionary":
        """The same with more latents, which are never active."""
        more = n_latents - len(self.W_dec)
        wide = lambda x, axis, value=0.0: jnp.pad(
            x, [(0, more if i == axis else 0) for i in range(x.ndim)], constant_values=value
        )
        return Dictionary(
            wide(self.W_enc, 1),
            wide(self.b_gate, 0),
            wide(self.threshold, 0, jnp.inf),
            wide(self.gain, 0),
            wide(self.b_mag, 0),
            wide(self.W_dec, 0),
            self.b_dec,
            self.k,
        )


def of_sae(sae: SAE) -> Dictionary:
    """An SAE as a dictionary that encodes and decodes alike."""
    zeros, k = jnp.zeros(len(sae.W_dec)), jnp.zeros(())
    if isinstance(sae, Gated):
        gates = sae.b_gate, zeros, jnp.exp(sae.r_mag), sae.b_mag
    else:
        bias: Float[Array, " latent"] = sae.b_enc  # pyright: ignore[reportAttributeAccessIssue]
        threshold = jnp.exp(sae.log_threshold) if isinstance(sae, JumpReLU) else zeros
        gates = bias, threshold, zeros + 1, bias
        k = sae.sparsity if isinstance(sae, TopK) else k
    return Dictionary(sae.W_enc, *gates, sae.W_dec, sae.b_dec, k)


def _linear(
    directions: Float[np.ndarray, "latent d_in"],
    decoder: Float[np.ndarray, "latent d_in"],
    centre: Float[np.ndarray, " d_in"],
) -> Dictionary:
    """The positive part of each direction's product with what is held."""
    ours = lambda x: jnp.asarray(x, jnp.float32)
    zeros = np.zeros(len(directions))
    return Dictionary(*map(ours, (directions.T, zeros, zeros, zeros + 1, zeros, decoder, centre, 0.0)))


def neurons(x: Float[np.ndarray, "token d_in"]) -> Dictionary:
    """The neurons themselves: each number that the site holds, and its negative where it has negative values."""
    directions = np.eye(x.shape[1])
    if (x < 0).any():
        directions = np.concatenate([directions, -directions])
    return _linear(directions, directions, np.zeros(x.shape[1]))


def principal(x: Float[np.ndarray, "token d_in"], n_latents: int) -> Dictionary:
    """The principal components of most variance, each in both directions."""
    centre = x.mean(0)
    components = np.linalg.svd(x - centre, full_matrices=False)[2][: n_latents // 2]
    directions = np.concatenate([components, -components])
    return _linear(directions, directions, centre)


def random_directions(x: Float[np.ndarray, "token d_in"], n_latents: int, rng: np.random.Generator) -> Dictionary:
    """Random unit directions, decoded as well as can be (least squares)."""
    directions = rng.normal(size=(n_latents, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    centre = x.mean(0)
    latents = np.maximum((x - centre) @ directions.T, 0)
    return _linear(directions, np.linalg.lstsq(latents, x - centre, rcond=None)[0], centre)
