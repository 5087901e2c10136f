"""The training step under swaps of edges as a TransformerLens user would write it, to be timed beside ours.

Hooks move each reader's input by what the senders wrote in their source runs, from a cache, less what they write in
this run, where the swap says so (path patching; Wang et al. 2023). One pass a swap. Swaps and labels are given,
computed beforehand by ours. Needs the extra `torch`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from siitjax.base.errors import UserError
from siitjax.bench.timing import STEPS
from siitjax.bench.torch_peer import Peer
from siitjax.causal.circuit import edge_labels
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.edge_metrics import kinds
from siitjax.siit.edge_sampling import draw_swaps
from siitjax.siit.train import EDGE_PAIRS, EPOCH_SHARE, Purpose, draw_key


class Given(NamedTuple):
    """The swaps of a batch, by mask, and the labels and weights of the tokens with nothing swapped and under each."""

    edges: Float[Tensor, "mask batch reader sender"]
    positions: Float[Tensor, "mask batch sender seq"]
    sources: Int[Tensor, "mask batch sender"]
    labels: Int[Tensor, "term batch seq"]
    weights: Float[Tensor, "term batch seq"]


class EdgePeer(Peer):
    """The step of one member, and its evaluation, in PyTorch, eager.

    Raises:
        UserError: MLPs are cut into parts, of which TransformerLens has no hooks.
    """

    def __init__(self, config: TrainConfig, threads: int):
        if config.case.config.n_parts > 1:
            raise UserError("--peer=torch has no hooks of parts of MLPs; give a --case whose MLPs are whole")
        super().__init__(config, threads)
        self.model.set_use_attn_result(True)
        self.given = self._given(config)
        self.passes = len(kinds(config.case))
        self.steps = 0

    def _given(self, config: TrainConfig) -> list[Given]:
        """The swaps of some steps, as training draws them once it draws every kind."""
        case = config.case
        hyper: Any = Hyperparams().traced()
        base, source = (jnp.asarray(x.numpy(), jnp.int32) for x in self.batch[:2])

        @jax.jit
        def drawn(base, source, key):
            swaps = draw_swaps(case.circuit, hyper, jnp.array(True), len(base), case.n_ctx, key=key)
            own = jax.vmap(lambda tokens: case.circuit(tokens)[0])(base)[:, None]
            labels = edge_labels(case.circuit, base, jnp.concatenate([source, base]), swaps)
            labels = jnp.concatenate([own, labels], 1)
            counted = case.counted_mask(base)[:, None].astype(jnp.float32)
            weights = jnp.where(labels == own, 1.0, 1 + hyper.w_changed) * counted
            return swaps.edges, swaps.positions, swaps.sources, labels, weights / counted.sum(-1, keepdims=True)

        def given(step: int) -> Given:
            found = drawn(base, source, draw_key(jax.random.key(0), Purpose.MASKS, step))
            edges, at, sources, labels, weights = (torch.tensor(np.asarray(x)).transpose(0, 1) for x in found)
            return Given(edges.float(), at.float(), sources.long(), labels.long(), weights)

        return [given(step) for step in range(STEPS)]

    def step(self) -> None:
        """Trains on one batch, as `siitjax.siit.step.make_step` does."""
        loss = torch.tensor(self.weights) @ self.losses(self.given[self.steps % STEPS])
        self.steps += 1
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    def losses(self, given: Given) -> Float[Tensor, " term"]:
        """The three terms, as `siitjax.siit.objective.edge_term_losses` gives them."""
        base, source, _ = self.batch
        with torch.no_grad():
            _, there = self._cached(source)
        logits, here = self._cached(base)
        runs, answers = torch.cat([there, here.detach()]), [logits]
        for edges, at, numbers in zip(given.edges, given.positions, given.sources, strict=True):
            answers.append(self._swapped(base, runs[numbers, torch.arange(len(self.nodes))], edges, at))
        losses = torch.nn.functional.cross_entropy(
            torch.stack(answers).flatten(0, 2), given.labels.flatten(), reduction="none"
        )
        return (losses.view_as(given.weights) * given.weights).sum(2).mean(1)

    @torch.no_grad()
    def evaluation(self) -> int:
        """As many passes as ours, on a share of the pairs: under single nodes, then a swap of each kind of edges'."""
        n = max(len(self.validation[0]) // EPOCH_SHARE, 1)
        base, source, labels = (x[..., :n, :] for x in self.validation)
        self.model.set_use_attn_result(False)
        right = self.counted(self.validation, n)
        self.model.set_use_attn_result(True)
        size = len(self.batch[0])
        for at in range(0, min(n, EDGE_PAIRS), size):
            here, (_, there) = base[at : at + size], self._cached(source[at : at + size])
            for i in range(self.passes):  # the swaps and labels of training's batch: what they are costs nothing more
                edges, positions = (x[i % 2, : len(here)] for x in self.given[i % STEPS][:2])
                logits = self._swapped(here, there, edges, positions)
                right += int((logits.argmax(-1) == labels[-1, at : at + size]).sum())
        return right

    def _cached(self, tokens: Tensor) -> tuple[Tensor, Float[Tensor, "run sender seq d_model"]]:
        """The logits, and what each sender writes."""
        written: list[Tensor] = []
        hooks: Any = self._writers(lambda own: written.append(own))
        logits: Any = self.model.run_with_hooks(tokens, fwd_hooks=hooks)
        return logits, torch.cat(written, 1)

    def _swapped(
        self,
        tokens: Tensor,
        there: Float[Tensor, "batch sender seq d_model"],
        edges: Float[Tensor, "batch reader sender"],
        at: Float[Tensor, "batch sender seq"],
    ) -> Tensor:
        """The logits where each reader sees what its swapped senders wrote there."""
        deltas: list[Tensor] = []
        done = readers = 0
        seen = torch.zeros(())

        def write(own):
            nonlocal done
            these = slice(done, done := done + own.shape[1])
            deltas.append((there[:, these] - own) * at[:, these, :, None])

        def moved(n):
            nonlocal readers
            these = slice(readers, readers := readers + n)
            return torch.einsum("brs,bstd->btrd", edges[:, these, :done], torch.cat(deltas, 1))

        def heads(value, hook):
            nonlocal seen
            if hook.name.endswith("q_input"):  # k and v see the same
                seen = moved(value.shape[2])
            return value + seen

        def whole(value, hook):
            return value + moved(1)[:, :, 0]

        layers = range(self.model.cfg.n_layers)
        hooks: Any = self._writers(write)
        hooks += [(f"blocks.{i}.hook_{kind}_input", heads) for i in layers for kind in "qkv"]
        hooks += [(f"blocks.{i}.hook_mlp_in", whole) for i in layers if not self.model.cfg.attn_only]
        hooks.append((f"blocks.{layers[-1]}.hook_resid_post", whole))
        self._split(True)
        logits: Any = self.model.run_with_hooks(tokens, fwd_hooks=hooks)
        self._split(False)
        return logits

    def _split(self, whether: bool) -> None:
        """Gives readers inputs of their own, which takes time that other passes need not spend."""
        self.model.set_use_split_qkv_input(whether)
        if not self.model.cfg.attn_only:
            self.model.set_use_hook_mlp_in(whether)

    def _writers(self, take: Any) -> list[Any]:
        """The hooks that give `take` what senders write, (batch, sender, seq, d_model), in the order of the nodes."""
        one = lambda value, hook: take(value[:, None])
        several = lambda value, hook: take(value.transpose(1, 2))
        hooks: list[Any] = [("hook_embed", one)]
        for i in range(self.model.cfg.n_layers):
            hooks.append((f"blocks.{i}.attn.hook_result", several))
            if not self.model.cfg.attn_only:
                hooks.append((f"blocks.{i}.hook_mlp_out", one))
        return hooks
