"""The study of SAEs as a user meets it: the real command, its folder, its refusals; and its verdict by hand."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from siitjax.sae.file import load_sae
from siitjax.sae.report import best_settings
from sweeps.saes import decide

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
from siitjax.command import main
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
    (("--sites=blocks.3.attn.hook_z[0]",), "holds no variable at blocks.3.attn.hook_z[0]; choose other --sites"),
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
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
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


def rows_of(kind: str, shares: dict[str, dict[float, list[float]]], causal: float = 0.25) -> list[dict]:
    return [
        {"model": "0+1", "site": site, "trained": True, "kind": kind, "sparsity": sparsity, "seed": seed,
         "recovered": share, "latent_changed_iia": causal}
        for site, settings in shares.items()
        for sparsity, seeds in settings.items()
        for seed, share in enumerate(seeds)
    ]  # fmt: skip


def test_each_site_counts_at_the_sparsity_that_recovers_most():
    rows = rows_of("topk", {"a": {1.0: [0.2, 0.4], 2.0: [0.1, 0.9]}, "b": {1.0: [0.6, 0.6], 2.0: [0.5, 0.6]}})
    rows += [{**row, "trained": False, "recovered": 1.0} for row in rows] + [
        {**rows[0], "site": "c", "recovered": None}
    ]
    found = best_settings(rows, "topk")
    assert [[row["recovered"] for row in setting] for setting in found] == [[0.1, 0.9], [0.6, 0.6]]


@pytest.mark.parametrize(
    ("ours", "control", "kind", "words"),
    [
        (
            (0.8, 0.9, 0.85),
            (0.2, 0.3, 0.25),
            "supported",
            "the best kind, topk, recovers 85% (95% interval 73 to 97), and",
        ),
        ((0.8, 0.9, 0.85), (0.8, 0.9, 0.85), "undecided", "(difference 0% (95% interval 0 to 0); 3 sites)"),
        ((0.1, 0.2, 0.15), (0.0, 0.0, 0.0), "contradicted", "and the best control, neurons, 0% (95% interval 0 to 0)"),
        (
            (0.1, 0.9, 0.5),
            (0.0, 0.0, 0.0),
            "undecided",
            "the best kind, standard, changes 25% (95% interval 25 to 25)",
        ),
    ],
)
def test_the_rule_of_the_verdict(ours, control, kind, words):
    sites = lambda shares: {f"site {i}": {1.0: [share]} for i, share in enumerate(shares)}
    rows = rows_of("standard", sites([0.0, 0.0, 0.05])) + rows_of("topk", sites(ours))
    rows += rows_of("neurons", sites([0.0, 0.0, 0.0])) + rows_of("PCA", sites(control))
    rows += rows_of("probe", sites([1.0, 1.0, 1.0]))
    verdict = decide(rows)
    assert verdict.kind == kind
    assert re.search(re.escape(words), str(verdict)), str(verdict)


def test_one_site_decides_nothing():
    rows = rows_of("topk", {"a": {1.0: [0.9]}}) + rows_of("random", {"a": {1.0: [0.1]}})
    assert decide(rows).kind == "undecided"
    assert decide([{**row, "recovered": None} for row in rows]).kind == "undecided"
