"""Sparse autoencoders of four kinds: how each encodes, and the loss it is trained by.

All take activations whose variance, over all dimensions together, is 1, so that the first term of a loss is the share
of variance that is left unexplained. Names and shapes of weights are SAELens'.
"""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

BANDWIDTH = 0.2
"""Width of the kernel by which a threshold's gradient is estimated (Rajamanoharan et al. 2024b, section 4). Wider than
there: small batches have few latents near their thresholds."""
THRESHOLD = 0.1
"""A JumpReLU's first threshold."""
K_AUX, W_AUX = 8, 1 / 32
"""How many dead latents rebuild the error, and the weight of that loss (Gao et al. 2024, appendix A.2)."""

Tokens = Float[Array, "token d_in"]
Latents = Float[Array, "token latent"]


class SAE(eqx.Module):
    """What all kinds share.

    Attributes:
        sparsity: the weight of the kind's sparsity term, or TopK's k; nothing trains it.
    """

    W_enc: Float[Array, "d_in latent"]
    W_dec: Float[Array, "latent d_in"]
    b_dec: Float[Array, " d_in"]
    sparsity: Float[Array, ""]

    resampled: ClassVar[bool] = True
    """Whether dead latents are resampled (Bricken et al. 2023); otherwise the loss itself revives them."""

    @abstractmethod
    def encode(self, x: Tokens) -> Latents:
        """The activation of every latent, not negative."""

    @abstractmethod
    def loss(
        self, x: Tokens, dead: Bool[Array, " latent"], warmth: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Latents]:
        """The loss of a batch, and its latents.

        Args:
            dead: latents that have not been active for long.
            warmth: share of the sparsity term that counts, from 0 to 1.
        """

    def decode(self, latents: Latents) -> Tokens:
        """The activation that the latents stand for."""
        return latents @ self.W_dec + self.b_dec[None]

    def projected(self, x: Tokens) -> Latents:
        """The activation, without the decoder's bias, on each latent's direction of the encoder."""
        return (x - self.b_dec[None]) @ self.W_enc


class Standard(SAE):
    """ReLU and L1 (Bricken et al. 2023, "Towards monosemanticity")."""

    b_enc: Float[Array, " latent"]

    def encode(self, x: Tokens) -> Latents:
        return jax.nn.relu(self.projected(x) + self.b_enc[None])

    def loss(self, x, dead, warmth):
        latents = self.encode(x)
        l1 = (latents @ jnp.linalg.norm(self.W_dec, axis=1)).mean()
        return squared_error(x, self.decode(latents)) + warmth * _weight(self) * l1, latents


class TopK(SAE):
    """The k largest latents (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

    b_enc: Float[Array, " latent"]

    resampled: ClassVar[bool] = False

    def encode(self, x: Tokens) -> Latents:
        return largest(self.projected(x) + self.b_enc[None], _weight(self))

    def loss(self, x, dead, warmth):
        held = self.projected(x) + self.b_enc[None]
        latents = largest(held, _weight(self))
        error = x - self.decode(latents)

        def revived():
            # What dead latents could explain of the error; the bias has no part in it.
            chosen = largest(jnp.where(dead[None], held, -jnp.inf), jnp.float32(K_AUX))
            return squared_error(jax.lax.stop_gradient(error), chosen @ self.W_dec)

        return jnp.square(error).sum(1).mean() + W_AUX * jax.lax.cond(dead.any(), revived, lambda: 0.0), latents


class JumpReLU(SAE):
    """A threshold for each latent, and L0 (Rajamanoharan et al. 2024b, "Jumping ahead")."""

    b_enc: Float[Array, " latent"]
    log_threshold: Float[Array, " latent"]

    def encode(self, x: Tokens) -> Latents:
        return jump(jax.nn.relu(self.projected(x) + self.b_enc[None]), jnp.exp(self.log_threshold))

    def loss(self, x, dead, warmth):
        held, threshold = jax.nn.relu(self.projected(x) + self.b_enc[None]), jnp.exp(self.log_threshold)
        latents = jump(held, threshold)
        l0 = above(jax.lax.stop_gradient(held), threshold).sum(1).mean()
        return squared_error(x, self.decode(latents)) + warmth * _weight(self) * l0, latents


class Gated(SAE):
    """Which latents are active, and how much, apart (Rajamanoharan et al. 2024a, "Improving dictionary learning")."""

    b_gate: Float[Array, " latent"]
    b_mag: Float[Array, " latent"]
    r_mag: Float[Array, " latent"]

    def encode(self, x: Tokens) -> Latents:
        return self._gates_and_latents(x)[1]

    def _gates_and_latents(self, x: Tokens) -> tuple[Latents, Latents]:
        held = self.projected(x)
        gates = held + self.b_gate[None]
        magnitudes = jax.nn.relu(held * jnp.exp(self.r_mag)[None] + self.b_mag[None])
        return gates, jnp.where(gates > 0, magnitudes, 0.0)

    def loss(self, x, dead, warmth):
        gates, latents = self._gates_and_latents(x)
        gates = jax.nn.relu(gates)
        frozen = jax.lax.stop_gradient((self.W_dec, self.b_dec))
        l1 = (gates @ jnp.linalg.norm(frozen[0], axis=1)).mean()
        auxiliary = squared_error(x, gates @ frozen[0] + frozen[1][None])
        return squared_error(x, self.decode(latents)) + warmth * _weight(self) * l1 + auxiliary, latents


KINDS: dict[str, type[SAE]] = {"standard": Standard, "topk": TopK, "jumprelu": JumpReLU, "gated": Gated}
"""By SAELens' names."""


def init_sae(
    kind: str, centre: Float[Array, " d_in"], n_latents: int, sparsity: Float[Array, ""], *, key: PRNGKeyArray
) -> SAE:
    """An SAE with random unit directions, encoder and decoder alike, and `centre` as its bias."""
    directions = jax.random.normal(key, (n_latents, len(centre)))
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    zeros, cls = jnp.zeros(n_latents), KINDS[kind]
    first = {"log_threshold": jnp.full(n_latents, jnp.log(THRESHOLD))}
    own = [name for name in cls.__dataclass_fields__ if name not in SAE.__dataclass_fields__]
    return cls(directions.T, directions, centre, sparsity, **{name: first.get(name, zeros) for name in own})


def select_latents(where: Bool[Array, " latent"], chosen: SAE, other: SAE) -> SAE:
    """The SAE with the latents of `chosen` where that is said, and everything else as in `other`."""

    def leaf(path, ours, theirs: Shaped[Array, "..."]):
        name = path[-1].name
        if name in ("b_dec", "sparsity"):
            return theirs
        shape = {"W_enc": (1, -1), "W_dec": (-1, 1)}.get(name, (-1,))
        return jnp.where(where.reshape(shape), ours, theirs)

    return jax.tree_util.tree_map_with_path(leaf, chosen, other)


def squared_error(x: Tokens, rebuilt: Tokens) -> Float[Array, ""]:
    """The squared error of a token, summed over its activation, in the mean over tokens."""
    return jnp.square(x - rebuilt).sum(1).mean()


def _weight(sae: SAE) -> Float[Array, ""]:
    return jax.lax.stop_gradient(sae.sparsity)


def largest(held: Latents, k: Float[Array, ""]) -> Latents:
    """The k largest of each token's latents where they are positive, and 0 in the place of the others.

    k is traced, so that lanes of different k share a program; equal latents count as one.
    """
    fixed = jax.lax.stop_gradient(held)
    lower = lambda _, bound: jnp.where(fixed < bound, fixed, -jnp.inf).max(1, keepdims=True)
    least = jax.lax.fori_loop(0, k.astype(jnp.int32), lower, jnp.full_like(fixed, jnp.inf, shape=(len(fixed), 1)))
    return jnp.where((held >= least) & (held > 0), held, 0.0)


@jax.custom_vjp
def jump(held: Latents, threshold: Float[Array, " latent"]) -> Latents:
    """The latents that lie above their thresholds; the threshold's gradient is estimated (the paper's equation 11)."""
    return jnp.where(held > threshold[None], held, 0.0)


@jax.custom_vjp
def above(held: Latents, threshold: Float[Array, " latent"]) -> Latents:
    """1 for latents above their thresholds, 0 for others; the threshold's gradient is estimated (equation 12)."""
    return (held > threshold[None]).astype(held.dtype)


def _near(held: Latents, threshold: Float[Array, " latent"]) -> Latents:
    """The kernel: a rectangle of area 1."""
    return jnp.where(jnp.abs(held - threshold[None]) < BANDWIDTH / 2, 1 / BANDWIDTH, 0.0)


def _jump_back(saved, gradient):
    held, threshold = saved
    own = jnp.where(held > threshold[None], gradient, 0.0)
    return own, -threshold * (_near(held, threshold) * gradient).sum(0)


def _above_back(saved, gradient):
    held, threshold = saved
    return jnp.zeros_like(held), -(_near(held, threshold) * gradient).sum(0)


jump.defvjp(lambda held, threshold: (jump(held, threshold), (held, threshold)), _jump_back)
above.defvjp(lambda held, threshold: (above(held, threshold), (held, threshold)), _above_back)
