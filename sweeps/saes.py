"""Do sparse autoencoders find the variables that we know are there?"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Literal

import jax
from rich.console import Console
from rich.table import Table

import cases
from siitjax.analysis.sae.kinds import KINDS
from siitjax.analysis.sae.known import held
from siitjax.analysis.sae.report import beside, compared, costs_table, kinds_table, picture
from siitjax.analysis.sae.results import SAEResults
from siitjax.analysis.sae.site import HOOKS, find_sites
from siitjax.analysis.sae.study import Cost, Job, Subject, score_jobs, train_jobs, unscored
from siitjax.analysis.sae.train import SAEConfig
from siitjax.base.choice import check_choice
from siitjax.base.command import MOST_SEEDS, Command, flag, main
from siitjax.base.errors import UserError
from siitjax.base.files import replaced
from siitjax.base.jsonl import Row
from siitjax.base.versions import machine
from siitjax.causal.behaviour import behaviour
from siitjax.model.weights import weights_digest
from siitjax.questions.report import Verdict
from siitjax.questions.statistics.ranks import LEAST
from siitjax.sweep.cores import cores
from siitjax.sweep.placement import use_compilation_cache

PAIRS = ("0+1", "0+2", "0+3", "1+2", "1+3", "2+3")
HALF = 50.0
"""Percent of what a linear probe finds; a kind that finds more on average finds the variables. Fixed before the first
full run."""
QUICK = {"models": ("1+2",), "sites": ("hook_post", "hook_resid_post"), "seeds": 1, "steps": 1_000}


@dataclass(frozen=True)
class SAEs(Command):
    """Do sparse autoencoders find the variables that we know are there?

    Trains SAEs of four kinds on activations of shipped models, at sites that hold variables, and scores them on other
    samples against every value of those variables: does a latent say that a variable has the value (F1 of the best
    latent; found at 0.95), and are the matched latents what the transformer uses (only they are interchanged between
    a base and a source: does the counterfactual label come out)? Beside them stand the neurons themselves, principal
    components, random directions, SAEs on untrained transformers, and a linear probe, which says what is there to find.

    The rule: at a site of a trained model, an SAE recovers the share of the values found by the linear probe that its
    latents find too. Each model is measured, over its sites and seeds, at the kind and sparsity that recover most at
    the same hook (such as hook_post) of the other models, and so is the best control (neurons, PCA or random
    directions); what is measured has no part in the choice. The models, not their sites, are what is counted.
    Supported: the whole 95% interval of the median over the models (of the sign test,
    siitjax/questions/statistics/paired.py) lies above 50%, and that of the difference to the controls above 0.
    Contradicted: the former lies below 50%. Undecided: neither, or fewer than 6 models. The same comparison of the
    interchanged latents is told beside it and decides nothing.
    """

    title = "Do sparse autoencoders find the known variables?"

    models: tuple[str, ...] = flag(PAIRS, "the shipped models to train SAEs on, by number; a verdict takes 6")
    sites: tuple[str, ...] = flag(
        HOOKS, "sites: TransformerLens' names; a name without its layer is each layer that holds variables there"
    )
    kinds: tuple[str, ...] = flag(tuple(KINDS), "the kinds of SAE: standard, topk, jumprelu, gated")
    standard: tuple[float, ...] = flag((0.03, 0.1, 0.3), "weights of the L1 penalty of a standard SAE", least=0)
    topk: tuple[float, ...] = flag((1, 2, 4), "latents that a TopK SAE leaves active a token", least=1)
    jumprelu: tuple[float, ...] = flag((0.01, 0.03, 0.1), "weights of the L0 penalty of a JumpReLU SAE", least=0)
    gated: tuple[float, ...] = flag((0.1, 0.3, 1.0), "weights of the L1 penalty of a gated SAE", least=0)
    seeds: int = flag(3, "SAEs a setting; their seeds are 0, 1, 2, ...", least=1, most=MOST_SEEDS)
    latents: int = flag(128, "latents in each SAE", least=2)
    steps: int = flag(2_000, "updates of each SAE", least=1)
    batch_size: int = flag(64, "tokens an update", least=1)
    lr: float = flag(2e-3, "Adam's learning rate; it falls to 0 over the last fifth of the updates")
    tokens: int = flag(16_384, "tokens whose activations are trained on", least=256)
    held_out: int = flag(
        600, "samples to score on: the first half chooses the best latents, the second half measures them", least=100
    )
    pairs: int = flag(200, "of these samples, those that are interchanged, each with another one", least=2)
    seed: int = flag(4_000_000, "decides the samples, and the weights of the untrained transformers", least=0)
    untrained: bool = flag(True, "also train SAEs on untrained transformers, one seed a setting")
    peer: Literal["", "saelens"] = flag("", "also time the same SAEs in SAELens, on the same activations: saelens")
    devices: int = flag(0, "devices that the SAEs are split over; 0: all; on CPU they are virtual, one a core", least=0)
    quick: bool = flag(False, "two kinds of site of one model, one seed, 1000 updates, and no untrained transformer")
    out: str = flag("results/saes", "folder of the results")
    resume: bool = flag(False, "go on with an unfinished results folder")

    def run(self) -> int:
        if self.quick:
            return replace(self, quick=False, untrained=False, **QUICK).run()
        check_choice("peer", self.peer, ("", "saelens"))
        for kind in self.kinds:
            check_choice("kind", kind, tuple(KINDS))
        for k in self.topk:
            if k != int(k) or k > self.latents:
                raise UserError(f"--topk holds {k:g}; each must be a whole number, and no more than --latents")
        if self.batch_size > self.tokens:
            raise UserError(f"--batch_size is {self.batch_size}, but there are {self.tokens} --tokens; lower it")
        if self.pairs > self.held_out:
            raise UserError(f"--pairs is {self.pairs}, but only {self.held_out} samples are --held_out; lower it")
        timed = _saelens() if self.peer else None
        with suppress(RuntimeError):  # where something has run before, the devices are what they are
            jax.config.update("jax_num_cpu_devices", self.devices or len(cores()))
        jobs = self.jobs()
        results = SAEResults(Path(self.out), self.config(jobs))
        screen = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
        if results.check(resume=self.resume):
            rows = results.rows()
            unscored(jobs, rows)
            self._show(rows, screen)
            screen.print(f"{self.out} was finished before; nothing was changed.")
            return 0
        use_compilation_cache()
        for job in jobs:
            self.sae_config(job)  # which says what is wrong with it
        log = Console(stderr=True, highlight=False, soft_wrap=True)
        with results.held(resume=self.resume):
            log.print(f"{len(jobs)} SAEs, on {len(jax.local_devices())} device(s) ({jax.devices()[0].device_kind})")
            costs = train_jobs(jobs, self.sae_config, results, log.print)
            score_jobs(jobs, results, log.print)
            peers = [timed(cost, jobs, self.sae_config) for cost in costs] if timed else []
            rows = results.rows()
            verdict = self._show(rows, screen)
            if costs:
                screen.print(costs_table(costs, peers))
            for kind in ("png", "pdf"):
                with replaced(results.folder / f"figure.{kind}") as path:
                    self.picture(rows, verdict, path)
            ran_on = {**machine(), "jax": version("jax")}
            cost = [{**asdict(cost), **({"saelens": peer} if peer else {})} for cost, peer in beside(costs, peers)]
            results.finish({"question": self.title, "verdict": asdict(verdict), "cost": cost, "ran_on": ran_on})
        screen.print(f"Results, SAEs and picture: {self.out}")
        return 0

    def config(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """What decides the rows, as JSON has it."""
        how = ("peer", "devices", "quick", "out", "resume")
        flags = {name: [*v] if isinstance(v, tuple) else v for name, v in asdict(self).items() if name not in how}
        subjects = {job.subject.name: job.subject for job in jobs if job.subject.trained}
        weights = {name: weights_digest(subject.model) for name, subject in subjects.items()}
        return {
            **flags,
            "weights": weights,
            "behaviour": {name: behaviour(subject.case).describe() for name, subject in subjects.items()},
        }

    def jobs(self) -> list[Job]:
        """Every SAE to be trained."""
        found = []
        for name in self.models:
            check_choice("the model", name, cases.MODELS)
            trained = cases.load(name)
            sites = find_sites(trained.case, self.sites)
            if empty := [str(site) for site in sites if not held(trained.case, site)]:
                raise UserError(f"{name} holds no variable at {empty[0]}; choose other --sites")
            subject = Subject(
                name, True, trained.case, trained.model, sites, self.tokens, self.held_out, self.pairs, self.seed
            )
            subjects = [(subject, self.seeds), *([(subject.untrained(), 1)] if self.untrained else [])]
            for subject, seeds in subjects:
                found += [
                    Job(subject, site, kind, float(sparsity), seed)
                    for site, kind in product(sites, self.kinds)
                    for sparsity, seed in product(getattr(self, kind), range(seeds))
                ]
        return found

    def sae_config(self, job: Job) -> SAEConfig:
        return SAEConfig(job.kind, job.width, self.latents, self.steps, self.batch_size, self.lr)

    def _show(self, rows: Sequence[Row], screen: Console) -> Verdict:
        verdict = self.verdict(rows)
        for table in self.tables(rows):
            screen.print(table)
        screen.print(str(verdict))
        return verdict

    def verdict(self, rows: Sequence[Row]) -> Verdict:
        """What the rows say."""
        return decide(rows)

    def tables(self, rows: Sequence[Row]) -> Sequence[Table]:
        """A line a kind and sparsity."""
        return [kinds_table(rows, self.title)]

    def picture(self, rows: Sequence[Row], verdict: Verdict, path: Path) -> None:
        """Draws the picture, a png or a pdf as the path says."""
        picture(rows, f"{self.title}\n{verdict.kind.capitalize()}", path)


def _saelens() -> Any:
    try:
        from siitjax.bench import saelens_peer as peer
    except ModuleNotFoundError as error:
        raise UserError(
            f"--peer=saelens needs {error.name}, which is not installed; pip install 'siitjax[sae]' brings it"
        ) from None

    def seconds(cost: Cost, jobs: Sequence[Job], config: Any) -> float:
        """Of one SAE of that shape in SAELens."""
        job = next(j for j in jobs if (config(j).kind, config(j).d_in) == (cost.kind, cost.d_in))
        x = job.subject.activations[job.site]
        return peer.saelens_seconds(config(job), job.sparsity, x, peer.best_threads(config(job), job.sparsity, x))

    return seconds


def decide(rows: Sequence[Row]) -> Verdict:
    """The verdict; see `SAEs` for its rule."""
    told, used = (compared(rows, score) for score in ("recovered", "latent_changed_iia"))
    if told is None:
        models = {row["model"] for row in rows if row["trained"] and row.get("recovered") is not None}
        if not models:
            return Verdict("undecided", "a linear probe finds no value at any site, so there is nothing to recover.")
        return Verdict("undecided", f"what is best is chosen on other models, and there is only {models.pop()}.")
    found, above, kind = told.found, told.above, "undecided"
    if found.low is not None and found.high is not None and above.low is not None:
        kind = "supported" if found.low > HALF and above.low > 0 else "contradicted" if found.high < HALF else kind
    said = [f"of the values that a linear probe finds, {told.words('recovers')}"]
    if used is not None:
        interchanged = "of the labels that should change when only the latents matched to a variable are interchanged"
        said.append(f"{interchanged}, {used.words('changes')}")
    if told.models < LEAST:
        said.append(f"an interval takes {LEAST} models")
    return Verdict(kind, f"{'; '.join(said)}.")


if __name__ == "__main__":
    main(SAEs)
