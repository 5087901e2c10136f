"""What a command says of what went wrong: one line of what the user can mend, a traceback of a bug."""

import subprocess
import sys
from dataclasses import dataclass, fields

import pytest
from absl import flags

from siitjax.base.command import Command, flag, main, parse, usage
from siitjax.base.errors import UserError
from siitjax.cli.main import COMMANDS
from siitjax.cli.main import main as program
from siitjax.questions.question import Question
from siitjax.sweep import hosts
from sweeps.betas import Betas
from sweeps.capacity import Capacity
from sweeps.gain import Gain
from sweeps.heads import Heads
from sweeps.kinds import Kinds
from sweeps.published import Published
from sweeps.sampling import Samplings
from sweeps.schedule import Schedules
from sweeps.table import Models
from sweeps.weights import Weights
from tests.commands import run


@dataclass(frozen=True)
class Fails(Command):
    """Raises what the test puts here."""

    error = Exception()
    often: int = flag(1, "how many times", least=1)

    def run(self) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("n is 0; it must\n be at least 1"), "n is 0; it must be at least 1"),
        (MemoryError("no lane fits"), "no lane fits"),
        (flags.Error("no such flag"), "no such flag"),
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b cannot be used (Permission denied)"),
    ],
)
def test_what_the_user_can_mend_is_one_line(monkeypatch, capsys, error, words):
    monkeypatch.setattr(Fails, "error", error)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(Fails, ["fails"])
    assert capsys.readouterr() == ("", f"fails: {words}\n")


@pytest.mark.parametrize(
    "error", [ValueError("axes don't match array"), KeyError("x"), RuntimeError("x"), OSError(5, "x"), AssertionError()]
)
def test_a_bug_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(Fails, "error", error)
    with pytest.raises(type(error)) as raised:
        main(Fails, ["fails"])
    assert raised.value is error


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(32, "Broken pipe"), 141)])
def test_what_ends_a_command_from_outside_has_the_code_that_a_shell_expects(monkeypatch, capsys, error, code):
    monkeypatch.setattr(Fails, "error", error)
    with pytest.raises(SystemExit, match=f"^{code}$"):
        main(Fails, ["fails"])
    assert capsys.readouterr() == ("", "fails: interrupted\n" if code == 130 else "")


def test_a_subclass_gives_a_flag_another_default_and_keeps_its_text_and_range():
    @dataclass(frozen=True)
    class Often(Fails):
        """Fails three times."""

        often: int = 3

    assert parse(Often, ["often"]) == Often(often=3)
    with pytest.raises(UserError, match=r"^--often is 0; it must be at least 1$"):
        parse(Often, ["often", "--often=0"])
    assert "--often=3\n      how many times" in usage(Often)


QUESTIONS = [Betas, Capacity, Gain, Heads, Kinds, Models, Published, Samplings, Schedules, Weights]
OWN = {question: {"case"} for question in (Gain, Heads, Published)} | {
    question: {"case", "batch_size"} for question in (Capacity, Models)
}
"""Flags that a question tells in its own words."""


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_flag_of_all_questions_has_the_same_text_in_each(question):
    about = {f.name: f.metadata["about"] for f in fields(Question)}
    own = {f.name for f in fields(question) if f.metadata["about"] != about.get(f.name, f.metadata["about"])}
    assert own == OWN.get(question, set())


def test_an_environment_variable_that_is_no_number_is_one_line(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match=r'^JAX_NUM_PROCESSES is "two"; it must be a whole number$'):
        hosts.join()


def test_a_reader_that_leaves_ends_it_in_silence():
    command = [sys.executable, "-m", "sweeps.betas", "--config_only", "--seeds=1000"]  # more than a pipe holds
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"{\n"
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


def test_a_backend_that_is_not_there_is_one_line():
    ended = run("-m", "siitjax", "evaluate", "1", "--pairs=100", JAX_PLATFORMS="fantasy")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert ended.err.startswith('evaluate: JAX_PLATFORMS is "fantasy", and JAX finds no such device here (Unable to')
    assert ended.err.endswith("; unset it, or set it to cpu\n")


def test_the_program_lists_its_commands(capsys):
    for argv in ([], ["--help"], ["-h"], ["help"]):
        with pytest.raises(SystemExit, match=r"^0$"):
            program(argv)
        out = capsys.readouterr().out
        assert out.startswith("usage: siitjax COMMAND ...\n")
        assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == [*COMMANDS]


def test_each_listed_command_is_there(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit, match=r"^0$"):
            program([name, "--help"])
        assert "\nFlags, each with its default:" in capsys.readouterr().out


def test_an_unknown_command_is_one_line(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        program(["evalute", "1"])
    words = 'siitjax: the command is "evalute"; did you mean "evaluate"? It must be one of '
    assert capsys.readouterr() == ("", f"{words}{', '.join(COMMANDS)}\n")
