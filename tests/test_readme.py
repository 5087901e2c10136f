"""What the READMEs show is what is there: the task is a case's file, the question runs, and links lead somewhere."""

import re
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.commands import run
from tests.test_compare import setting

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", *(ROOT / room / "README.md" for room in ("cases", "sweeps", "siitjax"))]
BLOCKS = [text for path in READMES for text in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)]


def block(first_words: str) -> str:
    (found,) = [text for text in BLOCKS if text.startswith(f'"""{first_words}')]
    return found


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_what_a_readme_links_to_is_there(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_first_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_the_task_shown_is_the_file_of_a_case():
    assert block("duplicate_remover") == (ROOT / "cases" / "duplicate_remover.py").read_text()


def test_the_question_shown_runs(tmp_path):
    (tmp_path / "clip.py").write_text(block("Does it matter at which norm gradients are clipped?"))
    small = ("--seeds=2", "--samples=200", "--batch_size=50", "--epochs=2", "--workers=1")
    ended = run(str(tmp_path / "clip.py"), *small, f"--out={tmp_path / 'results'}")
    assert ended.code == 0, ended.err
    assert "clip 0.1" in ended.out
    assert (tmp_path / "results" / "figure.png").exists()


def test_the_question_shown_calls_a_setting_twice_as_fast_a_difference():
    names: dict[str, Any] = {"__name__": "clip"}
    exec(compile(block("Does it matter at which norm gradients are clipped?"), "README.md", "exec"), names)
    tens = (9, 10, 11, 10, 12, 8, 10, 11)
    verdict = lambda factor, other: names["Clip"]().verdict(
        [*setting(*(factor * n for n in tens), clip=0.1), *setting(*(other * n for n in tens[::-1]), clip=1.0)]
    )
    assert verdict(2, 1).kind == verdict(1, 2).kind == "supported"
    assert verdict(8, 8).kind == "contradicted"


def test_the_case_with_near_sources_shown_is_one_of_them():
    (shown,) = [text for text in BLOCKS if "OneChanged(" in text]
    names: dict[str, Any] = {}
    exec(compile(shown, "README.md", "exec"), names)
    base, other = names["near"].tokens("(())"), names["near"].tokens("))((")
    sources = [names["near"].sources(base, other, jax.random.key(i)) for i in range(20)]
    assert {int((source != base).sum()) for source in sources} == {1, 4}


def test_the_model_shown_loads_and_holds_its_circuit():
    (shown,) = [text for text in BLOCKS if 'siitjax.load("left_greater")' in text]
    names = {}
    exec(compile(shown, "README.md", "exec"), names)
    assert names["labels"].shape == (5,)
    assert (names["logits"].argmax(-1) == names["labels"]).all()


def test_the_flax_module_shown_is_swapped_and_ours_again():
    (shown,) = [text for text in BLOCKS if "siitjax.flax.to_nnx(" in text]
    names = {}
    exec(compile(shown, "README.md", "exec"), names)
    ours = names["ours"]
    assert (names["logits"] != ours(names["base"])[0]).any()
    assert names["logits"].shape == (4, 3)
