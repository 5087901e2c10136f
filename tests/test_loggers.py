"""What a training hands to TensorBoard and Weights & Biases, read back, is its history."""

import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import siitjax
from siitjax.base.errors import UserError
from tests.test_front import SMALL


def events(folder: Path) -> dict[str, dict[int, float]]:
    """Each curve of an event file by its step: records of a length, its checksum, the bytes, and theirs.

    The last record may be half written.
    """
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    (file,) = folder.glob("events.out.tfevents.*")
    left, found = file.read_bytes(), {}
    while len(left) > 8 and len(left) >= 16 + (length := struct.unpack("<Q", left[:8])[0]):
        event = Event.FromString(left[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        left = left[16 + length :]
    return found


def test_tensorboard_has_the_history(tmp_path):
    with siitjax.TensorBoard(tmp_path) as log:
        heard: list[siitjax.Epoch] = []
        run = siitjax.train("left_greater", seed=1, on_epoch=[log, heard.append], **SMALL)
        until = time.monotonic() + 60
        while [*(found := events(tmp_path)).get("seconds", {})] != [1, 2] and time.monotonic() < until:
            time.sleep(0.1)  # they are written beside the training, and read before the file is closed
    assert [epoch.number for epoch in heard] == [1, 2]
    assert set(found) == {*run.history, "seconds"} - {"epoch"}
    for name, curve in run.history.items():
        if name != "epoch":
            assert [*found[name]] == [1, 2]
            np.testing.assert_allclose([*found[name].values()], curve, rtol=1e-6)


def logged(file: Path) -> list[dict[str, float]]:
    """The rows of a run's file, whose records lie in blocks of 32 KiB, each piece behind its length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data, at, whole, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record, whole = Record.FromString(whole), b""
            if record.HasField("history"):
                rows.append({".".join(i.nested_key) or i.key: float(i.value_json) for i in record.history.item})
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_have_the_history(tmp_path):
    with siitjax.WandB(project="siit", mode="offline", dir=str(tmp_path)) as log:
        run = siitjax.train("left_greater", seed=1, on_epoch=log, **SMALL)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = logged(file)
    assert [row["_step"] for row in rows] == [1, 2]
    for name, curve in run.history.items():
        assert name == "epoch" or [row[name] for row in rows] == [*curve]


def test_weights_and_biases_are_told_each_epoch(monkeypatch):
    told = []

    class Told:
        def init(self, **settings):
            told.append(settings)
            return self

        def log(self, numbers, step):
            told.append((step, numbers["iia"]))

        def finish(self):
            told.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Told())
    with siitjax.WandB(project="siit") as log:
        run = siitjax.train("left_greater", seed=1, on_epoch=log, **SMALL)
    iia = run.history["iia"]
    assert told == [{"project": "siit"}, (1, iia[0]), (2, iia[1]), "finished"]


@pytest.mark.parametrize(
    ("name", "make", "extra"),
    [
        ("tensorboardX", lambda: siitjax.TensorBoard("none"), "tensorboard"),
        ("wandb", lambda: siitjax.WandB(project="none"), "wandb"),
    ],
)
def test_what_is_not_installed_is_one_line(name, make, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"^{name} is not installed; type: pip install 'siitjax\[{extra}\]'$"):
        make()
