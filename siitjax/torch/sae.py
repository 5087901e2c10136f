"""SAEs on our models, trained by SAELens itself: no hub, no internet, and what it saves is in its own format.

What stops a user who has a model and a task of their own, and what is done here: the runner would fetch the model and
the tokenizer from a hub (it is given the HookedTransformer), it would fetch a text and cut it up (it is given samples
of the case, as token ids), it would put a BOS before them (they have theirs), it would learn from pads (left out), and
it would log to a server (it does not).
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from sae_lens import (
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)

from siitjax.base.errors import UserError
from siitjax.causal.case import PAD, Case
from siitjax.model.config import TransformerConfig
from siitjax.torch.hooked import load_into, to_hooked_transformer
from siitjax.torch.source import Source, check_case, transformer


@dataclass(frozen=True)
class SAETraining:
    """How an SAE is trained; what is not here is at SAELens' defaults.

    Attributes:
        steps: updates.
        batch_size: activations an update, each of one token.
        lr: Adam's learning rate.
        samples: of the case, to take activations from, over and over, each time in a new order.
        seed: decides the samples, the SAE's first weights and the order of the activations.

    Raises:
        UserError: a number is not positive.
    """

    steps: int = 500
    batch_size: int = 512
    lr: float = 1e-3
    samples: int = 10_000
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "lr", "samples"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be greater than 0")


def sites(config: TransformerConfig) -> dict[str, int]:
    """The sites that an SAE can be trained at, by TransformerLens' names, and how wide each is.

    "blocks.0.attn.hook_z" is of all heads side by side, "blocks.0.attn.hook_z[2]" of one. SAELens evaluates an SAE of
    one head as such, but its `run_with_saes` attaches one to all heads alike.
    """
    found = {"hook_embed": config.d_model}
    for i in range(config.n_layers):
        block = f"blocks.{i}"
        found |= {f"{block}.hook_resid_pre": config.d_model, f"{block}.attn.hook_z": config.d_model}
        found |= {f"{block}.attn.hook_z[{head}]": config.d_head for head in range(config.n_heads)}
        found[f"{block}.hook_attn_out"] = config.d_model
        if not config.attn_only:
            found |= {f"{block}.hook_resid_mid": config.d_model, f"{block}.mlp.hook_post": config.mlp_width}
            found[f"{block}.hook_mlp_out"] = config.d_model
        found[f"{block}.hook_resid_post"] = config.d_model
    return found


def saelens_runner(
    case: Case,
    source: Source,
    site: str,
    *,
    sae: TrainingSAEConfig | None = None,
    training: SAETraining | None = None,
    out: Path | str | None = None,
) -> LanguageModelSAETrainingRunner:
    """SAELens' own runner, set up for one of our models; its `run()` trains, saves to `out`, and gives the SAE.

    Args:
        case: whose samples the activations are taken on.
        source: a transformer, a model's folder, or a shipped model's name.
        site: one of `sites`.
        sae: what is trained, any of SAELens' kinds; None for a standard SAE (ReLU, L1) four times as wide as the site.
        training: None for the defaults.
        out: folder to save to, in SAELens' format; None to save nothing.

    Raises:
        UserError: the transformer has no such site, is of another case, the SAE is for another width, or `out` exists.
    """
    training = training or SAETraining()
    model = transformer(source)
    found = sites(model.config)
    if site not in found:
        raise UserError(f'the model has no site "{site}"; its sites are {", ".join(found)}')
    if (case.config.d_vocab, case.n_ctx) != (model.config.d_vocab, model.config.n_ctx):
        raise UserError(
            f"{case.name} has {case.config.d_vocab} tokens in samples of {case.n_ctx}, but the transformer is made for "
            f"{model.config.d_vocab} in samples of {model.config.n_ctx}; give the case that it was trained on"
        )
    check_case(source, case)
    width = found[site]
    sae = sae or StandardTrainingSAEConfig(d_in=width, d_sae=4 * width, l1_coefficient=1.0)
    if sae.d_in != width:
        raise UserError(f"the SAE takes {sae.d_in} numbers, but {site} holds {width}; give it d_in={width}")
    if out is not None and Path(out).exists():
        raise UserError(f"{out} exists, and nothing is replaced; choose another folder, or take it away")
    name, _, head = site.rstrip("]").partition("[")
    if name.endswith("hook_z") and not head:
        sae = replace(sae, reshape_activations="hook_z")  # it is attached where heads have an axis of their own
    config = LanguageModelSAERunnerConfig(
        sae=sae,
        model_name=case.name,
        hook_name=name,
        hook_head_index=int(head) if head else None,
        dataset_path=case.name,
        context_size=case.n_ctx,
        prepend_bos=False,
        exclude_special_tokens=[PAD],
        training_tokens=training.steps * training.batch_size,
        train_batch_size_tokens=training.batch_size,
        n_batches_in_buffer=-(-8 * training.batch_size // case.n_ctx),  # SAELens counts in samples: 8 batches are mixed
        lr=training.lr,
        seed=training.seed,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None if out is None else str(out),
        model_from_pretrained_kwargs={},
        verbose=False,
    )
    with _seeded(training.seed):
        return LanguageModelSAETrainingRunner(config, _samples(case, training), to_hooked_transformer(model))


def train_sae(
    case: Case,
    source: Source,
    site: str,
    *,
    sae: TrainingSAEConfig | None = None,
    training: SAETraining | None = None,
    out: Path | str | None = None,
) -> TrainingSAE[Any]:
    """Trains an SAE by `saelens_runner`, and leaves torch's random numbers and the handling of signals as they were."""
    training = training or SAETraining()
    runner = saelens_runner(case, source, site, sae=sae, training=training, out=out)
    with _seeded(training.seed), _same_signals():
        return runner.run()


def to_sae_transformer(source: Source, *, device: str = "cpu") -> HookedSAETransformer:
    """SAELens' HookedSAETransformer of a transformer, a model's folder, or a shipped model's name.

    What `train_sae` saved is attached to it: `run_with_saes(tokens, saes=[SAE.load_from_disk(out)])`.

    Raises:
        UserError: it is no model.
    """
    return load_into(HookedSAETransformer, source, device)


def _samples(case: Case, training: SAETraining) -> IterableDataset:
    """Samples without end, in a new order each time, as a Hugging Face dataset that SAELens takes as it is."""
    rng = np.random.default_rng(training.seed)
    tokens, _ = case.draw(training.samples, training.samples // 4 + 1, rng)

    def endless() -> Iterator[dict[str, list[int]]]:
        while True:
            for row in rng.permutation(np.asarray(tokens)).tolist():
                yield {"tokens": row}

    return IterableDataset.from_generator(endless)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _same_signals() -> Iterator[None]:
    """SAELens sets handlers of its own for Ctrl-C and SIGTERM, and leaves them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
