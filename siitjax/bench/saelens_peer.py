"""The same SAEs trained by SAELens' own trainer, to be timed beside ours. Needs the extra `sae`."""

import contextlib
import io
import time
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float

from siitjax.analysis.sae.train import SAEConfig
from siitjax.sweep.cores import cores

with warnings.catch_warnings():
    # SAELens 6 imports names of TransformerLens that are to go in its version 4.
    warnings.simplefilter("ignore", DeprecationWarning)
    from sae_lens import TrainingSAE
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer


def saelens_seconds(
    config: SAEConfig, sparsity: float, tokens: Float[np.ndarray, "token d_in"], threads: int, steps: int | None = None
) -> float:
    """Seconds that SAELens' trainer takes for one SAE.

    Args:
        tokens: what it is trained on; it gets whole blocks of it, so that it waits for nothing.
        steps: time only so many of its steps, and reckon from that.
    """
    steps = steps or config.steps
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            with torch.random.fork_rng(devices=[]):
                trainer = saelens_trainer(config, sparsity, tokens, steps)
                began = time.perf_counter()
                trainer.fit()
            return (time.perf_counter() - began) * config.steps / steps
    finally:
        torch.set_num_threads(before)


def best_threads(config: SAEConfig, sparsity: float, tokens: Float[np.ndarray, "token d_in"]) -> int:
    """The number of threads, up to as many as there are cores, at which the peer is fastest."""
    return min(range(1, len(cores()) + 1), key=lambda threads: saelens_seconds(config, sparsity, tokens, threads, 100))


def saelens_trainer(
    config: SAEConfig, sparsity: float, tokens: Float[np.ndarray, "token d_in"], steps: int
) -> SAETrainer:
    """SAELens' trainer, set up for an SAE of ours."""
    weight = {"topk": {"k": round(sparsity)}, "jumprelu": {"l0_coefficient": sparsity}}
    sae = {
        "architecture": config.kind,
        "d_in": config.d_in,
        "d_sae": config.n_latents,
        **weight.get(config.kind, {"l1_coefficient": sparsity}),
    }

    def batches() -> Iterator[torch.Tensor]:
        held, size = torch.tensor(tokens), config.batch_size
        while True:
            for start in torch.randperm(len(held) // size) * size:
                yield held[start : start + size]

    training = SAETrainerConfig(
        total_training_samples=steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=config.lr,
        lr_end=config.lr / 10,
    )
    return SAETrainer(training, TrainingSAE.from_dict(sae), batches())
