"""A study of SAEs: all of them trained, kind by kind and width by width, then scored site by site."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from siitjax.analysis.sae.dictionary import Dictionary, neurons, of_sae, principal, random_directions
from siitjax.analysis.sae.exam import Exam, prepare_exam
from siitjax.analysis.sae.file import CONFIG, load_sae, save_sae
from siitjax.analysis.sae.kinds import SAE
from siitjax.analysis.sae.results import LAST, SAEResults
from siitjax.analysis.sae.score import FOUND, Found, Scores, probe, score
from siitjax.analysis.sae.site import Site
from siitjax.analysis.sae.spread import compile_spread
from siitjax.analysis.sae.train import Activity, Lane, SAEConfig, folded, prepare, train
from siitjax.analysis.sae.value_directions import mean_correlation, uniqueness, value_directions
from siitjax.base.errors import UserError
from siitjax.base.jsonl import Row
from siitjax.causal.case import Case
from siitjax.model.transformer import Transformer, random_like
from siitjax.siit.metrics import mean

AT_ONCE = 16
"""Lanes of one call of the program: what is trained when it returns is saved."""
FITTED = 4_000
"""Tokens that controls are fitted on."""
CONTROLS = ("neurons", "PCA", "random")
"""What stands beside the SAEs of a site; the linear probe, whose row is the last, is what they are measured against."""


@dataclass(frozen=True)
class Subject:
    """A transformer whose activations are studied.

    Attributes:
        name: of the shipped model.
        trained: false for one of the same shape with random weights.
        tokens: activations that each SAE can be trained on.
        held_out: samples that dictionaries are scored on, of which `pairs` are interchanged.
        seed: decides the samples and the random weights.
    """

    name: str
    trained: bool
    case: Case
    model: Transformer
    sites: tuple[Site, ...]
    tokens: int
    held_out: int
    pairs: int
    seed: int

    @cached_property
    def samples(self) -> tuple[Int[np.ndarray, "train seq"], Int[np.ndarray, "held_out seq"]]:
        """What is trained on, and what is held out."""
        wanted = 1 + self.tokens // (self.case.n_ctx // 2)
        return self.case.draw(wanted, self.held_out, np.random.default_rng(self.seed))

    @cached_property
    def activations(self) -> dict[Site, Float[np.ndarray, "token d_in"]]:
        """What each site holds at the samples' own tokens, in random order."""
        samples = jnp.asarray(self.samples[0])
        own = np.asarray(self.case.token_mask(samples))
        order = np.random.default_rng(self.seed).permutation(own.sum())[: self.tokens]

        @jax.jit
        @jax.vmap
        def read(tokens):
            activations = self.model(tokens)[1]
            return [site.read(self.model, activations) for site in self.sites]

        return {site: np.asarray(x)[own][order] for site, x in zip(self.sites, read(samples), strict=True)}

    def untrained(self) -> "Subject":
        """The same with random weights."""
        return replace(self, trained=False, model=random_like(self.model, key=jax.random.key(self.seed)))


@dataclass(frozen=True)
class Job:
    """One SAE of a study."""

    subject: Subject
    site: Site
    kind: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """What its file and its rows are called."""
        which = "" if self.subject.trained else "untrained-"
        return f"{which}{self.subject.name}-{self.site}-{self.kind}-{self.sparsity:g}-{self.seed}"

    @property
    def width(self) -> int:
        """Numbers that its site holds a token."""
        return self.site.width(self.subject.case.config)

    def describe(self) -> Row:
        """What its row says of it before it is trained."""
        return {**_place(self.subject, self.site), "kind": self.kind, "sparsity": self.sparsity, "seed": self.seed}


@dataclass(frozen=True)
class Cost:
    """What the SAEs of one shape took.

    Attributes:
        seconds: wall time an SAE, compilation not counted.
        compile_s: of the program.
    """

    kind: str
    d_in: int
    saes: int
    seconds: float
    compile_s: float


def train_jobs(
    jobs: Sequence[Job], config: Callable[[Job], SAEConfig], results: SAEResults, say: Callable[[str], None]
) -> list[Cost]:
    """Trains what is not in the folder yet, and saves it."""
    missing = [job for job in jobs if not (results.sae(job.name) / CONFIG).exists()]
    shape = lambda job: (config(job).d_in, config(job).kind)
    costs = []
    for (d_in, kind), group in groupby(sorted(missing, key=shape), key=shape):
        costs.append(_train_shape(list(group), config, results))
        say(f"trained {costs[-1].saes} {kind} SAEs on {d_in} numbers, {costs[-1].seconds:.2f} s each")
    return costs


def _train_shape(jobs: list[Job], config: Callable[[Job], SAEConfig], results: SAEResults) -> Cost:
    places = {(job.subject.name, job.subject.trained, job.site): job for job in jobs}
    activities = [prepare(job.subject.activations[job.site]) for job in places.values()]
    stacked: Activity = jax.tree.map(lambda *x: jnp.stack(x), *activities)
    at = {place: i for i, place in enumerate(places)}
    run, compile_s, seconds = None, 0.0, []
    size = min(AT_ONCE, len(jobs))
    for start in range(0, len(jobs), size):
        part = jobs[start : start + size]
        full = part + [part[-1]] * (size - len(part))
        which = [at[job.subject.name, job.subject.trained, job.site] for job in full]
        lanes = Lane(
            jnp.array(which, jnp.int32),
            jnp.array([job.seed for job in full], jnp.int32),
            jnp.array([job.sparsity for job in full], jnp.float32),
        )
        began = time.perf_counter()
        if run is None:
            run = train(config(jobs[0]), stacked, lanes)
            compile_s = time.perf_counter() - began
            began = time.perf_counter()
        trained = jax.device_get(run(lanes))
        seconds.append((time.perf_counter() - began) / size)
        for i, job in enumerate(part):
            sae = folded(jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), trained), activities[which[i]].scale)
            save_sae(results.sae(job.name), sae, job.site, job.subject.name, job.subject.case.n_ctx, job.describe())
    return Cost(config(jobs[0]).kind, config(jobs[0]).d_in, len(jobs), float(np.median(seconds)), compile_s)


def unscored(jobs: Sequence[Job], rows: Sequence[Row]) -> list[list[Job]]:
    """The jobs, site by site, of the sites that have no rows.

    Raises:
        UserError: a site has rows, and not all of them.
    """
    have = Counter((row["model"], row["trained"], row["site"]) for row in rows)
    place = lambda job: (job.subject.name, not job.subject.trained, job.subject.sites.index(job.site))
    missing = []
    for _, group in groupby(sorted(jobs, key=place), key=place):
        ours = list(group)
        subject, site = ours[0].subject, ours[0].site
        found, wanted = have[subject.name, subject.trained, str(site)], len(ours) + len(CONTROLS) + 1
        if found not in (0, wanted):
            which = subject.name if subject.trained else f"{subject.name} untrained"
            raise UserError(
                f"rows.jsonl is damaged: it holds {found} of the {wanted} rows of {site} of {which}; take those out of "
                "it and summary.json away, and --resume scores the site again"
            )
        if not found:
            missing.append(ours)
    return missing


def score_jobs(jobs: Sequence[Job], results: SAEResults, say: Callable[[str], None]) -> None:
    """Scores every SAE, and the controls beside them, of the sites that have no rows yet.

    Raises:
        UserError: a site has rows, and not all of them.
    """
    for ours in unscored(jobs, results.rows()):
        subject, site = ours[0].subject, ours[0].site
        began = time.perf_counter()
        rows = _score_site(subject, site, ours, [load_sae(results.sae(job.name)) for job in ours])
        results.append(rows)
        which = subject.name if subject.trained else f"{subject.name} untrained"
        say(f"scored {len(rows)} dictionaries at {site} of {which} in {time.perf_counter() - began:.1f} s")


def _score_site(subject: Subject, site: Site, jobs: list[Job], saes: list[SAE]) -> list[Row]:
    x = subject.activations[site][:FITTED]
    exam = prepare_exam(subject.model, subject.case, site, subject.samples[1], subject.pairs, subject.seed)
    most = max(len(sae.W_dec) for sae in saes)
    controls = (neurons(x), principal(x, most), random_directions(x, most, np.random.default_rng(subject.seed)))
    every = [*map(of_sae, saes), *controls]
    n_latents = max(len(dictionary.W_dec) for dictionary in every)
    stacked: Dictionary = jax.tree.map(lambda *x: jnp.stack(x), *(d.padded(n_latents) for d in every))
    scores: Scores = jax.device_get(compile_spread(score, exam.ground, stacked)(exam.ground, stacked))
    ceiling = jax.device_get(probe(exam))
    measure = exam.ground.measure
    values = value_directions(*map(np.asarray, (measure.x, measure.holds, measure.counted)))
    heads = [job.describe() for job in jobs]
    heads += [{**_place(subject, site), "kind": kind, "sparsity": None, "seed": None} for kind in CONTROLS]
    rows = []
    for i, (head, dictionary) in enumerate(zip(heads, every, strict=True)):
        own: Scores = jax.tree.map(lambda x, i=i: x[i], scores)
        directions = np.asarray(dictionary.W_dec)
        along = {
            "mcc": _number(mean_correlation(directions, values)),
            "uniqueness": _number(uniqueness(directions, values)),
        }
        used = _used(own, len(directions), subject, exam)
        rows.append({**head, **_found(own.found, ceiling, exam), **along, **used})
    rows.append({**_place(subject, site), "kind": LAST, "sparsity": None, "seed": None})
    rows[-1] |= _found(ceiling, ceiling, exam)
    return rows


def _place(subject: Subject, site: Site) -> Row:
    return {"model": subject.name, "trained": subject.trained, "site": str(site), "hook": site.hook}


def _found(found: Found, ceiling: Found, exam: Exam) -> Row:
    there = ceiling.f1 >= FOUND
    return {
        "coverage": _number((found.f1 >= FOUND).mean()),
        "there": int(there.sum()),
        "recovered": _number((found.f1[there] >= FOUND).mean()) if there.any() else None,
        "mean_f1": _number(found.f1.mean()),
        "mean_auroc": _number(found.auroc.mean()),
        "purity": _number(found.purity),
        "split": _number(found.split),
        "absorbed": _number(found.absorbed),
        "f1": dict(zip(exam.known.names, map(_number, found.f1), strict=True)),
        "auroc": dict(zip(exam.known.names, map(_number, found.auroc), strict=True)),
    }


def _used(scores: Scores, n_latents: int, subject: Subject, exam: Exam) -> Row:
    rebuilt = {
        "explained": _number(scores.explained),
        "l0": _number(scores.l0),
        "dead": _number(1 - scores.live / n_latents),
    }
    if not subject.trained:
        return rebuilt  # it answers nothing right that could go wrong
    number = lambda share: None if share is None else float(share)
    named = lambda tally: dict(zip(exam.swapped, map(number, tally.shares), strict=True))
    return {
        **rebuilt,
        "accuracy": number(scores.base.share),
        "iia": number(scores.node.share),
        "latent_iia": number(mean(scores.variable.shares)),
        "latent_changed_iia": number(mean(scores.changed.shares)),
        "variable_iia": named(scores.variable),
        "variable_changed_iia": named(scores.changed),
        "variable_changed": dict(zip(exam.swapped, map(int, scores.changed.of), strict=True)),
    }


def _number(x: Any) -> float | None:
    return None if np.isnan(x) else round(float(x), 5)
