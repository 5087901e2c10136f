"""The sites that a dictionary can be trained at: what they hold in a run, and the run with that replaced."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array, Float, Int

from siitjax.base.choice import check_choice
from siitjax.base.errors import UserError
from siitjax.base.precision import matmul_precision
from siitjax.causal.case import Case
from siitjax.model.config import TransformerConfig
from siitjax.model.nodes import Node, head, mlp
from siitjax.model.transformer import Activations, Swap, Transformer, normalised

Hook = Literal["hook_z", "hook_post", "hook_mlp_out", "hook_resid_post"]
HOOKS: tuple[Hook, ...] = ("hook_z", "hook_post", "hook_mlp_out", "hook_resid_post")


@dataclass(frozen=True)
class Site:
    """A site of one layer, and of one head where it is `hook_z`."""

    hook: Hook
    layer: int
    head: int | None = None

    def __str__(self) -> str:
        """Its name in TransformerLens, with the head's index where the site holds several."""
        inside = {"hook_z": "attn.", "hook_post": "mlp."}.get(self.hook, "")
        return f"blocks.{self.layer}.{inside}{self.hook}" + ("" if self.head is None else f"[{self.head}]")

    @property
    def node(self) -> Node | None:
        """The node whose values it holds; None for the residual stream, which holds those of every node before."""
        if self.hook == "hook_resid_post":
            return None
        return mlp(self.layer) if self.head is None else head(self.layer, self.head)

    @property
    def depth(self) -> int:
        """How many sites of nodes it lies behind, itself counted; see `Node.depth`."""
        return (self.node or mlp(self.layer)).depth

    def width(self, config: TransformerConfig) -> int:
        """Numbers that the site holds a token: the SAE's d_in."""
        return {"hook_z": config.d_head, "hook_post": config.mlp_width}.get(self.hook, config.d_model)

    @matmul_precision()
    def read(self, model: Transformer, activations: Activations) -> Float[Array, "seq d_in"]:
        """What the site holds in the run of these activations."""
        block, (before, z, post) = model.blocks[self.layer], self._layer(activations)
        assert block.mlp is not None
        if self.head is not None:
            return z[:, self.head]
        out = block.mlp.out(post)
        return {"hook_post": post, "hook_mlp_out": out}.get(self.hook, before + block.attn.out(z) + out)

    @matmul_precision()
    def replaced(
        self,
        model: Transformer,
        tokens: Int[Array, " seq"],
        activations: Activations,
        value: Float[Array, "seq d_in"],
        swap: Swap | None = None,
    ) -> Float[Array, "seq vocab_out"]:
        """The logits of the run of these activations with `value` at the site, and all after it computed again.

        Args:
            swap: what the run was under; later nodes are swapped again.
        """
        block, (before, z, post) = model.blocks[self.layer], self._layer(activations)
        assert block.mlp is not None
        z = z if self.head is None else z.at[:, self.head].set(value)
        mid = before + block.attn.out(z)
        if self.head is not None:
            post = block.mlp.post(normalised(block.ln2, mid))
            if swap is not None and swap[1].post is not None:
                masked = model.config.nodes.sites(swap[0]).post
                assert masked is not None
                post = block.mlp.swapped(masked[self.layer], swap[1].post[self.layer], post)
        post = value if self.hook == "hook_post" else post
        out = value if self.hook == "hook_mlp_out" else block.mlp.out(post)
        after = value if self.hook == "hook_resid_post" else mid + out
        if self.layer + 1 < model.config.n_layers:
            return model(tokens, swap, resume=(self.layer + 1, after))[0]
        return normalised(model.ln_final, after) @ model.unembed.W_U + model.unembed.b_U[None]

    def _layer(self, activations: Activations) -> tuple[Array, Array, Array]:
        """What the residual stream holds before the site's layer, and its z and post."""
        held = activations.stream, activations.z, activations.post
        before, z, post = (x[self.layer] for x in held if x is not None)
        return before, z, post


def all_sites(config: TransformerConfig) -> tuple[Site, ...]:
    """Every such site of a transformer, from the tokens to the logits.

    Raises:
        UserError: the transformer has no MLPs, or ones that are cut into parts.
    """
    if config.attn_only:
        raise UserError("the transformer has no MLPs; dictionaries are trained on those that have")
    if config.n_parts > 1:
        raise UserError("the transformer's MLPs are cut into parts; dictionaries are trained on those that are whole")
    return tuple(
        site
        for layer in range(config.n_layers)
        for site in (
            *(Site("hook_z", layer, i) for i in range(config.n_heads)),
            *(Site(hook, layer) for hook in HOOKS[1:]),
        )
    )


def find_sites(case: Case, names: Sequence[str]) -> tuple[Site, ...]:
    """The sites of a case's transformer that `names` lists, from the tokens to the logits.

    Args:
        names: TransformerLens' ("blocks.0.mlp.hook_post", "blocks.1.attn.hook_z[3]"), or without a layer ("hook_post"):
            then it stands for all those that hold a variable.

    Raises:
        UserError: the transformer has no such site; the message names those it has.
    """
    every = all_sites(case.config)
    for name in names:
        if name not in HOOKS and name not in map(str, every):
            if "." not in name:
                check_choice("site", name, HOOKS)
            listed = ", ".join(str(site) for site in every)
            raise UserError(f'{case.name} has no site "{name}"; its sites are {listed}, or in short {", ".join(HOOKS)}')
    used = {node for v in case.variables for node in v.nodes}
    holds = lambda site: site.node is None or site.node in used
    return tuple(site for site in every if str(site) in names or (site.hook in names and holds(site)))
