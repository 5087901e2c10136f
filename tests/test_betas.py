"""The main job as a user meets it: the real command, its folder, its interruptions and its refusals."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.betas import Betas
from tests.commands import HANGS, Ended, run

SMALL = ("--case=tests.tiny:NEVER", "--seeds=2", "--samples=500", "--batch_size=50", "--epochs=10", "--workers=1")
"""What is compiled in the least time; eight members, of half a second, that never converge."""
REFUSED = (
    (
        ("--case=left_greter",),
        'case is "left_greter"; did you mean "left_greater"? It must be one of duplicate_remover, ',
    ),
    (("--updates=single,tree",), 'updates is "tree"; did you mean "three"? It must be one of single, three'),
    (("--drawn_per=exemple",), 'drawn_per is "exemple"; did you mean "example"?'),
    (("--beta2=0.9,1",), "beta2 is 1.0; it must be at least 0 and less than 1"),
    (("--beta1=-0.1",), "beta1 is -0.1; it must be at least 0 and less than 1"),
    (("--beta2=0.9,high",), '--beta2 holds "high"; it must be a list of numbers, such as 0.9,0.999'),
    (("--beta2=",), "--beta2 is empty; list one value or more"),
    (("--beta2=0.9,0.9",), "--beta2 names a value twice"),
    (("--beta2=0.9,,0.99",), "--beta2 has a comma with nothing beside it; list one value or more"),
    (("--beta2=0.9,",), "--beta2 has a comma with nothing beside it"),
    (("--beta2=nan",), "--beta2 is nan; it must be a finite number"),
    (("--save_seconds=inf",), "--save_seconds is inf; it must be a finite number"),
    (("--seeds", "--config_only"), "--seeds has no value, but --config_only after it; write --seeds=VALUE"),
    (("--out", "--config_only"), "--out has no value, but --config_only after it; write --out=VALUE"),
    ((f"--seeds={2**63}",), "--seeds is 9223372036854775808; it must be at most 100000"),
    (("--seeds=100001",), "--seeds is 100001; it must be at most 100000"),
    ((f"--epochs={2**31}",), "--epochs is 2147483648; it must be at most 2147483647"),
    (("--seeds=0",), "--seeds is 0; it must be at least 1"),
    (("--seeds=-3",), "--seeds is -3; it must be at least 1"),
    (("--epochs=0",), "--epochs is 0; it must be at least 1"),
    (("--samples=0",), "--samples is 0; it must be at least 1"),
    (("--batch_size=-1",), "--batch_size is -1; it must be at least 1"),
    (("--batch_size=401", "--samples=500"), "batch_size is 401, but 500 samples leave 400 to train on; lower"),
    (("--seeds=many",), "flag --seeds=many"),
    (("--seed=3",), "Unknown command line flag 'seed'. Did you mean: seeds"),
    (("left_greater",), '"left_greater" is not a flag; flags are given as --name=value'),
)
# A shell that starts the tests in the background has them ignore SIGINT, and so would their children.
HEEDING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from siitjax.base.command import main
from sweeps.betas import Betas
main(Betas)
"""


def betas(*flags: str) -> Ended:
    return run("-m", "sweeps.betas", *flags)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(folder: Path) -> list[dict]:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    found = sorted((json.loads(line) for line in lines), key=lambda row: row["member"])
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("sweep") / "results"
    return folder, betas(*SMALL, f"--out={folder}")


def test_a_sweep_ends_in_a_table_a_verdict_and_a_folder_that_explains_itself(finished):
    folder, ended = finished
    assert ended.code == 0, ended.err
    assert "95% interval" in ended.out
    assert "Undecided: at beta2 0.9 no seed of single or three converged, so they cannot be compared; " in ended.out
    members = [f"members/{i:04d}.{kind}" for i in range(8) for kind in ("csv", "safetensors")]
    others = ["config.json", "curves.png", "figure.pdf", "figure.png", "rows.jsonl", "summary.json"]
    assert list(contents(folder)) == sorted([*members, *others])
    config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
    assert [(m["setting"], m["seed"]) for m in config["members"]] == [(r["setting"], r["seed"]) for r in rows(folder)]
    assert [s["run"] for s in summary["settings"]] == [2, 2, 2, 2]
    assert "device" in summary["ran_on"]


def test_progress_is_plain_lines_when_piped(finished):
    _, ended = finished
    assert "\x1b" not in ended.err + ended.out
    assert ended.err.count("exhausted after 10 epochs") == 8
    assert "[8 of 8, about 0 s left]" in ended.err


def test_a_finished_folder_is_left_as_it_is(finished, commands):
    folder, _ = finished
    before = contents(folder)
    for more in ((), ("--resume",)):
        (again,) = commands(Betas, (*SMALL, *more, f"--out={folder}"))
        assert again.code == 0
        assert "was finished before; nothing was changed" in again.out
        assert contents(folder) == before


def test_an_interrupted_sweep_keeps_its_members_and_resumes_to_the_same_rows_and_weights(finished, tmp_path, commands):
    whole, _ = finished
    folder = tmp_path / "results"
    command = [sys.executable, "-c", HEEDING, *SMALL, f"--out={folder}"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + HANGS
    while not (folder / "rows.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=HANGS)
    assert running.returncode == 130, said
    assert "Go on with the same command and --resume" in said
    kept = len(rows(folder))
    assert 1 <= kept < 8
    assert f"{kept} of 8 members are finished" in said

    (refused,) = commands(Betas, (*SMALL, f"--out={folder}"))
    assert refused.code == 2
    assert f"holds this sweep unfinished, {kept} of 8 members; add --resume" in refused.err

    resumed = betas(*SMALL, "--resume", f"--out={folder}")
    assert resumed.code == 0, resumed.err
    assert rows(folder) == rows(whole)
    assert {n: c for n, c in contents(folder).items() if n.startswith("members")} == {
        n: c for n, c in contents(whole).items() if n.startswith("members")
    }


def test_bad_flags_get_one_line_and_create_nothing(tmp_path, commands):
    folder = tmp_path / "results"
    ended = commands(Betas, *((*flags, f"--out={folder}") for flags, _ in REFUSED))
    for (code, out, err), (flags, words) in zip(ended, REFUSED, strict=True):
        assert (code, out) == (2, ""), flags
        assert err.startswith("betas: "), flags
        assert err.count("\n") == 1, flags
        assert words in err, flags
    assert list(tmp_path.iterdir()) == []


def test_bad_folders_get_one_line_and_are_left_as_they_are(finished, tmp_path, commands):
    folder, _ = finished

    def damaged(name: str, change) -> Path:
        copy = tmp_path / name
        for path, content in contents(folder).items():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_bytes(content)
        change(copy)
        return copy

    def cut(name: str):
        return lambda copy: (copy / name).write_bytes((copy / name).read_bytes()[:-40])

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("all of it")
    expected = {
        foreign: 'holds "thesis.tex" and no config.json, so it is not a sweep\'s results',
        foreign / "thesis.tex": "cannot be used (Not a directory)",
        damaged("config", cut("config.json")): "config.json is torn",
        damaged("rows", lambda copy: (copy / "rows.jsonl").write_text('{"member": 0\n')): "rows.jsonl line 1 is torn",
        damaged("last row", cut("rows.jsonl")): "holds this sweep unfinished, 7 of 8 members; add --resume",
        damaged("weights", cut("members/0002.safetensors")): "0002.safetensors or 0002.csv is missing or torn",
        damaged("gone", lambda copy: (copy / "members/0001.csv").unlink()): "0001.csv is missing or torn",
        damaged("other", lambda copy: (copy / "config.json").write_text('{"format": "x"}')): "that is not of siitjax",
    }
    before = contents(tmp_path)
    ended = commands(
        Betas, *((*SMALL, f"--out={path}") for path in expected), (*SMALL, "--epochs=11", f"--out={folder}")
    )
    words = [*expected.values(), "holds another sweep: its members[0].training.epochs is 10, not 11"]
    for (code, out, err), word in zip(ended, words, strict=True):
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1
        assert word in err
    assert contents(tmp_path) == before


def test_config_only_prints_the_whole_config_and_creates_nothing(tmp_path, commands):
    ((code, out, err),) = commands(Betas, ("--config_only", "--seeds=3", f"--out={tmp_path / 'results'}"))
    assert (code, err) == (0, "")
    config = json.loads(out)
    assert len(config["members"]) == 12
    assert config["members"][0]["case"]["circuit"] == {"counts": "L0H1", "left_greater": "MLP0", "answer": None}
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_flag(commands):
    ((code, out, err),) = commands(Betas, ("--help",))
    assert (code, err) == (0, "")
    for flag in ("case", "seeds", "beta1", "beta2", "updates", "epochs", "samples", "batch_size", "out"):
        assert f"--{flag}=" in out
    assert "--[no]resume\n" in out
    assert "--[no]config_only\n" in out
    assert "The rule: beta2 decides by how it changes the ratio of single's epochs to those of three" in out
