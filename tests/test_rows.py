"""Rows that are appended: torn anywhere, on a full disk, by two processes, in a power cut, none is lost or mixed."""

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cases
import siitjax.sweep.checkpoint
from siitjax.analysis.sae.results import LAST, SAEResults
from siitjax.analysis.sae.site import find_sites
from siitjax.analysis.sae.study import CONTROLS, Job, Subject, unscored
from siitjax.base.errors import UserError
from siitjax.base.files import Lock, hold
from siitjax.base.jsonl import RowsFile, TornError
from siitjax.io.hub_folder import new_folder
from siitjax.sweep.checkpoint import CheckpointError, find, load
from siitjax.sweep.results import Results, ResultsError
from tests import tear
from tests.parity import random_model

ROWS = [{"member": 0, "stop": "converged"}, {"member": 1, "stop": "exhausted"}]
LINES = b'{"member": 0, "stop": "converged"}\n{"member": 1, "stop": "exhausted"}\n'
SITE = [{"kind": "topk"}, {"kind": "neurons"}, {"kind": LAST}]


@pytest.fixture
def unsynced(monkeypatch):
    """A disk that is not waited for: nothing that these tests lose is lost by it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_a_first_row_cut_short_is_taken_away_whole(tmp_path):
    """One byte of it was kept, so that the next row began with {{ and no one could read the folder any more."""
    file = RowsFile(tmp_path / "rows.jsonl")
    file.path.write_bytes(b'{"member": 0')
    assert file.read() == []
    file.repair()
    file.append(ROWS[0])
    assert file.path.read_bytes() == b'{"member": 0, "stop": "converged"}\n'


@pytest.mark.usefixtures("unsynced")
def test_rows_torn_at_any_byte_of_the_last_one_are_read_and_written_on(tmp_path):
    file = RowsFile(tmp_path / "rows.jsonl")
    for before in (0, 1):  # rows that were there
        lines = b"".join(LINES.splitlines(keepends=True)[: before + 1])
        for k in range(lines[:-1].rfind(b"\n") + 1, len(lines)):
            for left in (lines[:k], lines[:k] + bytes(len(lines) - k), lines[:k] + bytes(len(lines) - k - 1) + b"\n"):
                if left == lines:
                    continue
                file.path.write_bytes(left)
                assert file.read() == ROWS[:before]
                file.repair()
                file.append(ROWS[before])
                assert file.path.read_bytes() == lines


@pytest.mark.usefixtures("unsynced")
def test_rows_of_one_append_are_all_there_or_none(tmp_path):
    file = RowsFile(tmp_path / "rows.jsonl", lambda row: row["kind"] == LAST)
    for before in (0, 1):  # appends that were there
        file.append(*SITE)
        whole = file.path.read_bytes()
        for k in range(before * len(whole) // 2, len(whole)):
            for left in (whole[:k], whole[:k] + bytes(len(whole) - k)):
                file.path.write_bytes(left)
                assert file.read() == SITE * before
                file.repair()
                file.append(*SITE)
                assert file.path.read_bytes() == whole


@pytest.mark.parametrize(("torn", "line"), [(b'{"member": 0\n' + LINES, 1), (LINES + b"\0\0\n" + LINES, 3)])
def test_a_row_that_is_torn_before_others_is_told_and_left(tmp_path, torn, line):
    file = RowsFile(tmp_path / "rows.jsonl")
    file.path.write_bytes(torn)
    for ask in (file.read, file.repair):
        with pytest.raises(TornError, match=rf"^{re.escape(str(file.path))} line {line} is torn: it is not whole JSON"):
            ask()
    assert file.path.read_bytes() == torn


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: a write that goes on ends there, in part, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("unsynced")
def test_a_disk_that_is_full_at_any_byte_of_a_row_leaves_the_rows_before_it(tmp_path):
    file = RowsFile(tmp_path / "rows.jsonl")
    for before in (0, 1):
        for k in range(len(LINES) // 2):
            file.path.write_bytes(b"".join(LINES.splitlines(keepends=True)[:before]))
            whole = file.path.read_bytes()
            with room_for(len(whole) + k), pytest.raises(OSError, match="File too large"):
                file.append(ROWS[before])
            assert file.path.read_bytes() == whole
            file.append(ROWS[before])
            assert file.read() == ROWS[: before + 1]


def test_a_full_disk_is_one_line_and_the_sweep_goes_on_from_it(tmp_path):
    results = Results(tmp_path / "sweep", "made up", tear.MEMBERS)
    tear.run(tmp_path / "whole")
    with results.held():
        results.begin(resume=False)
        row = results.write(0, tear.MEMBERS[0], tear.outcome(0))
        with (
            room_for(100),
            pytest.raises(ResultsError, match=r"sweep cannot be used \(File too large\); make room") as e,
        ):
            results.append(row)
        assert "\n" not in str(e.value)
        assert (results.folder / "rows.jsonl").read_bytes() == b""
    tear.run(results.folder)
    assert tear.contents(results.folder) == tear.contents(tmp_path / "whole")


def test_a_checkpoint_that_is_read_with_another_number_than_was_saved_is_passed_over(tmp_path, monkeypatch):
    """orbax reads zeros that a power cut left as numbers."""
    states, read = tear.saved(tmp_path), siitjax.sweep.checkpoint._read
    (spot,) = find(tmp_path, tear.SWEEP)[1]
    assert tear.bits(load(tmp_path, spot, states[0])) == tear.bits(states[1])

    def zeroed(place: Path):
        leaves, checksums = read(place)
        whole = {name: np.array(leaf) for name, leaf in leaves.items()}
        first = next(leaf for leaf in whole.values() if leaf[1].any())
        first[1].flat[np.flatnonzero(first[1])[0]] = 0
        return whole, checksums

    monkeypatch.setattr(siitjax.sweep.checkpoint, "_read", zeroed)
    with pytest.raises(CheckpointError, match=r"00000001 is torn \(its numbers are not those that were saved\)"):
        load(tmp_path, spot, states[0])


def test_nothing_is_named_before_it_is_on_the_disk_and_no_row_is_written_before_its_files_are(tmp_path, monkeypatch):
    """What a power cut takes is what was not synced: here is what was, in turn."""
    done: list[str] = []
    name = lambda path: str(Path(path).relative_to(tmp_path.parent)).replace(tmp_path.name, "", 1) or "/"
    fsync, put = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(f"sync {name(os.readlink(f'/proc/self/fd/{fd}'))}"), fsync(fd))[1]
    )
    monkeypatch.setattr(os, "replace", lambda new, old: (done.append(f"name {name(old)}"), put(new, old))[1])
    tear.run(tmp_path / "sweep")

    def written(folder: str, file: str) -> list[str]:
        return [f"sync /sweep{folder}/.{file}.new", f"name /sweep{folder}/{file}", f"sync /sweep{folder}"]

    def member(i: int) -> list[str]:
        files = [f"000{i}.safetensors", f"000{i}.csv"]
        return [step for file in files for step in written("/members", file)] + ["sync /sweep/rows.jsonl"]

    begun = ["sync /", "sync /sweep", *written("", "config.json")]
    assert done == [*begun, *member(0), "sync /sweep", *member(1)]


def test_of_two_sweeps_that_find_a_folder_empty_the_second_does_not_write_into_the_first_s(tmp_path):
    folder = tmp_path / "sweep"
    other = Results(folder, "made up", tuple(replace(m, seed=m.seed + 1) for m in tear.MEMBERS))
    assert other.check(resume=False) is None
    tear.run(folder)
    before = tear.contents(folder)
    with other.held(), pytest.raises(ResultsError, match=r"holds another sweep: its members\[0\].seed is 0, not 1"):
        other.begin(resume=False)
    assert tear.contents(folder) == before


def test_of_two_studies_that_find_a_folder_empty_the_second_does_not_write_into_the_first_s(tmp_path):
    folder = tmp_path / "study"
    other = SAEResults(folder, {"steps": 2})
    assert other.check(resume=False) is False
    tear.study(folder)
    before = tear.contents(folder)
    with pytest.raises(UserError, match="holds another study, with other steps"), other.held(resume=False):
        raise AssertionError("it was begun")
    assert tear.contents(folder) == before


@pytest.mark.parametrize("what", ["sweep", "study", "folder"])
def test_the_second_of_two_processes_says_who_holds_the_folder(tmp_path, what, monkeypatch):
    monkeypatch.setattr("siitjax.base.files.PATIENCE", 0.1)
    out = tmp_path / what
    held = {
        "sweep": lambda: Results(out, "made up", tear.MEMBERS).held(),
        "study": lambda: SAEResults(out, {"steps": 1}).held(resume=True),
        "folder": lambda: new_folder(out),
    }[what]
    out.parent.mkdir(exist_ok=True)
    if what != "folder":
        out.mkdir()
    lock = hold(tmp_path / ".folder.lock" if what == "folder" else out / ".lock")
    assert isinstance(lock, Lock)
    before = sorted(tmp_path.rglob("*"))
    words = "being written" if what == "folder" else "in use"
    with pytest.raises(UserError, match=rf"{what} is {words} by process {os.getpid()}; wait for it") as e, held():
        raise AssertionError("it was held twice")
    assert "\n" not in str(e.value)
    assert sorted(tmp_path.rglob("*")) == before
    lock.release()
    with held():
        pass


def test_a_study_killed_while_it_wrote_its_config_begins_again(tmp_path):
    (tmp_path / ".config.json.new").write_text('{"format"')
    (tmp_path / ".lock").write_text("1\n")
    tear.study(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "rows.jsonl"]


def test_a_site_of_which_rows_are_missing_is_told_and_not_taken_as_scored():
    """As a torn append left it before rows of a site were written whole or not at all."""
    case = cases.build("1")
    sites = find_sites(case, ("blocks.0.mlp.hook_post",))
    subject = Subject("1", True, case, random_model(case.config), sites, 256, 100, 2, 0)
    jobs = [Job(subject, sites[0], "topk", 2.0, seed) for seed in range(2)]
    kinds = ["topk", "topk", *CONTROLS, LAST]
    rows = [{"model": "1", "trained": True, "site": str(sites[0]), "kind": kind} for kind in kinds]
    assert unscored(jobs, []) == [jobs]
    assert unscored(jobs, rows) == []
    with pytest.raises(UserError, match=r"it holds 3 of the 6 rows of blocks.0.mlp.hook_post of 1; take those out"):
        unscored(jobs, rows[:3])
