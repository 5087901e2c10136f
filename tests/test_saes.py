"""The study of SAEs as a user meets it: the real command, its folder, its refusals; and its verdict by hand."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from siitjax.analysis.sae.file import load_sae
from siitjax.analysis.sae.kinds import KINDS
from siitjax.analysis.sae.report import compared
from siitjax.questions.statistics.paired import points
from sweeps.saes import decide
from tests.commands import HANGS

SMALL = (
    "--models=1+2",
    "--sites=blocks.0.mlp.hook_post",
    "--kinds=topk",
    "--topk=2",
    "--seeds=1",
    "--latents=16",
    "--steps=40",
    "--tokens=2048",
    "--held_out=300",
    "--pairs=12",
    "--devices=1",
)
EACH = """
import contextlib, io, json, shutil, sys
from siitjax.base.command import main
from sweeps.saes import SAEs
from tests.test_saes import unfinish
for argv in json.loads(sys.argv[1]):
    if argv[0] == "without sae_lens":
        sys.modules["sae_lens"] = None
        argv = argv[1:]
    if argv[0] == "unfinish":
        shutil.copytree(argv[1], argv[2])
        unfinish(argv[1])
        continue
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(SAEs, ["saes", *argv])
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
REFUSED = (
    (("--models=1+4",), '"1+4"'),
    (("--models=",), "--models is empty; list one value or more"),
    (("--sites=hook_psot",), 'site is "hook_psot"; did you mean "hook_post"?'),
    (("--sites=blocks.7.mlp.hook_post",), 'has no site "blocks.7.mlp.hook_post"; its sites are blocks.0.attn.hook_z'),
    (
        ("--models=0+3,1+2", "--sites=blocks.3.attn.hook_z[0]"),
        "holds no variable at blocks.3.attn.hook_z[0]; choose other --sites",
    ),
    (("--kinds=topc",), 'kind is "topc"; did you mean "topk"?'),
    (("--topk=2.5",), "--topk holds 2.5; each must be a whole number"),
    (("--topk=300",), "--topk holds 300; each must be a whole number, and no more than --latents"),
    (("--standard=-1",), "--standard is -1.0; it must be at least 0"),
    (("--steps=0",), "--steps is 0; it must be at least 1"),
    (("--lr=0",), "lr is 0.0; it must be greater than 0"),
    (("--batch_size=5000", "--tokens=4096"), "--batch_size is 5000, but there are 4096 --tokens; lower it"),
    (("--pairs=900",), "--pairs is 900, but only 600 samples are --held_out; lower it"),
    (("--peer=torch",), 'peer is "torch"'),
    (("without sae_lens", "--peer=saelens"), "pip install 'siitjax[sae]' brings it"),
)


def unfinish(folder: str) -> None:
    """As a crash would leave it: one SAE not written, a row cut short, nothing said."""
    out = Path(folder)
    for name in ("summary.json", "figure.png", "figure.pdf"):
        (out / name).unlink()
    (next((out / "saes").glob("1+2-*-topk-2-0")) / "cfg.json").unlink()
    rows = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    (out / "rows.jsonl").write_text("".join(row for row in rows if not json.loads(row)["trained"]) + '{"model": "1+')


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, list[tuple[int, str, str]]]:
    """A folder, and exit code, output and errors of command lines run in it, in one process without type checks."""
    folder = tmp_path_factory.mktemp("saes")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.tex").write_text("all of it")
    first = (*SMALL, f"--out={folder / 'results'}")
    argvs = (
        first,
        first,
        (*first, "--steps=41"),
        (*SMALL, f"--out={folder / 'foreign'}"),
        ("unfinish", str(folder / "results"), str(folder / "whole")),
        first,
        (*first, "--resume"),
        *((*flags, f"--out={folder / 'never'}") for flags, _ in REFUSED),
    )
    command = [sys.executable, "-c", EACH, json.dumps(argvs)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=True)
    return folder, [tuple(json.loads(line)) for line in ended.stdout.splitlines()]


def test_a_study_ends_in_a_table_a_verdict_and_a_folder_that_explains_itself(ran):
    folder, ((code, said, errors), *_) = ran
    whole = folder / "whole"
    assert code == 0, errors
    assert "Undecided" in said
    assert "recovered" in said
    assert json.loads((whole / "config.json").read_text())["models"] == ["1+2"]
    assert json.loads((whole / "summary.json").read_text())["verdict"]["kind"] == "undecided"
    rows = [json.loads(line) for line in (whole / "rows.jsonl").read_text().splitlines()]
    kinds = ["topk", "neurons", "PCA", "random", "probe"]
    assert [(row["kind"], row["trained"]) for row in rows] == [(k, trained) for trained in (True, False) for k in kinds]
    names = sorted(path.name for path in (whole / "saes").iterdir())
    assert names == ["1+2-blocks.0.mlp.hook_post-topk-2-0", "untrained-1+2-blocks.0.mlp.hook_post-topk-2-0"]


def test_saelens_loads_what_a_study_trained(ran):
    with warnings.catch_warnings():
        # SAELens 6 imports names of TransformerLens that are to go in its version 4.
        warnings.simplefilter("ignore", DeprecationWarning)
        sae_lens = pytest.importorskip("sae_lens")
    import torch

    x = np.random.default_rng(0).normal(size=(7, 128)).astype(np.float32)
    for folder in (ran[0] / "whole" / "saes").iterdir():
        ours, theirs = load_sae(folder), sae_lens.SAE.load_from_disk(folder)
        with torch.no_grad():
            np.testing.assert_allclose(theirs(torch.tensor(x)), ours.decode(ours.encode(jnp.asarray(x))), atol=1e-4)


def test_a_folder_is_left_as_it_is_or_refused_or_resumed_to_the_same(ran):
    folder, (_, again, other, elsewhere, refused, resumed, *_) = ran
    assert (again[0], "was finished before; nothing was changed" in again[1]) == (0, True)
    for (code, said, error), words in (
        (other, "holds another study, with other steps; choose another --out"),
        (elsewhere, 'holds "thesis.tex" and no study of SAEs; choose another --out'),
        (refused, "holds this study unfinished; add --resume to go on"),
    ):
        assert (code, said, error.count("\n")) == (2, "", 1)
        assert words in error
    assert resumed[0] == 0, resumed
    before, after = contents(folder / "whole"), contents(folder / "results")
    assert {*after} == {*before}
    lines = lambda found: sorted(found["rows.jsonl"].splitlines())
    assert lines(after) == lines(before)
    assert all(after[name] == before[name] for name in before if name.startswith("saes/"))


def test_bad_flags_get_one_line_and_create_nothing(ran):
    folder, ended = ran
    for (code, out, err), (flags, words) in zip(ended[-len(REFUSED) :], REFUSED, strict=True):
        assert (code, out) == (2, ""), (flags, err)
        assert err.count("\n") == 1, err
        assert err.startswith("saes: "), err
        assert words in err, err
    assert not (folder / "never").exists()


def rows_of(kind: str, shares: dict[float, list[float]], causal: float = 0.25, **more) -> list[dict]:
    """Rows of one site a model, by sparsity: a share of each model."""
    return [
        {"model": f"model {i}", "site": "site", "hook": "hook_post", "trained": True, "kind": kind,
         "sparsity": sparsity, "seed": 0, "recovered": share, "latent_changed_iia": causal, **more}
        for sparsity, models in shares.items()
        for i, share in enumerate(models)
    ]  # fmt: skip


def test_each_model_counts_at_what_is_best_on_the_others():
    # Sparsity 1 is best on models 1 and 2, for model 0's sake alone 2 would be best on average; and for each of the
    # two others, 2 is best on those that remain. What would be best on a model itself has no part in its figure.
    rows = rows_of("topk", {1.0: [0.1, 0.5, 0.5], 2.0: [0.9, 0.3, 0.4]}) + rows_of("random", {1.0: [0.0, 0.0, 0.0]})
    found = compared(rows, "recovered")
    assert found is not None
    assert found.models == 3
    # Model 0 at 1.0: 0.1; model 1: (0.1 + 0.5) / 2 < (0.9 + 0.4) / 2, at 2.0: 0.3; model 2 at 2.0: 0.4.
    assert found.found == points([0.1, 0.3, 0.4])


def test_the_best_of_many_kinds_of_pure_noise_is_no_better_than_the_others():
    rng = np.random.default_rng(0)
    above = []
    for _ in range(40):
        rows = [row for kind in KINDS for row in rows_of(kind, {1.0: [*rng.uniform(0, 1, 6)]})]
        rows += rows_of("PCA", {1.0: [*rng.uniform(0, 1, 6)]})
        found = compared(rows, "recovered")
        assert found is not None
        above.append(found.above.median)
    assert abs(np.mean(above)) < 5  # points; the best of four, chosen on the same rows, lies 12 above


def test_sites_of_a_model_are_one_figure():
    rows = [row for i in range(8) for row in rows_of("topk", {1.0: [0.2, 0.4]}, site=f"site {i}")]
    rows += [row for i in range(8) for row in rows_of("PCA", {1.0: [0.1, 0.1]}, site=f"site {i}")]
    found = compared(rows, "recovered")
    assert found is not None
    assert (found.models, found.found) == (2, points([0.2, 0.4]))
    verdict = decide(rows)
    assert verdict.kind == "undecided"
    assert str(verdict).endswith("2 models); an interval takes 6 models.")


GOOD, BAD = [0.8, 0.9, 0.85, 0.82, 0.88, 0.84], [0.2, 0.1, 0.15, 0.14, 0.12, 0.18]
NOTHING = [0.0, 0.01, 0.02, 0.0, 0.01, 0.02]


@pytest.mark.parametrize(
    ("ours", "control", "kind", "words"),
    [
        (GOOD, BAD, "supported", "the best kind (mostly topk) recovers 84% (95% interval 80 to 90), and"),
        (GOOD, [*GOOD[1:], 0.8], "undecided", "; 6 models)"),
        (BAD, NOTHING, "contradicted", "and the best control (mostly PCA) 1% (95% interval 0 to 2)"),
        ([0.1, 0.9, 0.5, 0.2, 0.8, 0.6], NOTHING, "undecided", "the best kind (mostly standard) changes 25%"),
    ],
)
def test_the_rule_of_the_verdict(ours, control, kind, words):
    rows = rows_of("standard", {1.0: [0.0, 0.01, 0.05, 0.0, 0.0, 0.0]}) + rows_of("topk", {1.0: ours})
    rows += rows_of("neurons", {1.0: [0.0] * 6}) + rows_of("PCA", {1.0: control}) + rows_of("probe", {1.0: [1.0] * 6})
    verdict = decide(rows)
    assert verdict.kind == kind, str(verdict)
    assert words in str(verdict)


def test_one_model_decides_nothing():
    rows = rows_of("topk", {1.0: [0.9]}) + rows_of("random", {1.0: [0.1]})
    assert str(decide(rows)) == "Undecided: what is best is chosen on other models, and there is only model 0."
    assert decide([{**row, "recovered": None} for row in rows]).kind == "undecided"
