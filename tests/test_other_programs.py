"""Where nnsight and pyvene are installed, the examples that swap a node in them answer as the causal model does."""

import re
import runpy
import warnings
from pathlib import Path

import jax.numpy as jnp
import pytest

import siitjax

TEXT = (Path(__file__).parents[1] / "siitjax" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("program", ["nnsight", "pyvene"])
def test_the_swap_shown_gives_the_label_that_the_causal_model_gives(program, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(program)
    shown = next(text for text in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if program in text)
    file = tmp_path / "shown.py"  # nnsight reads the source of a trace
    file.write_text(shown)
    names = runpy.run_path(str(file))
    case = siitjax.find_case("left_greater")
    mask = jnp.asarray(case.config.nodes.mask([siitjax.mlp(0)]))
    _, values = case.circuit(jnp.asarray(names["source"][0].numpy(), jnp.int32))
    labels, _ = case.circuit(jnp.asarray(names["base"][0].numpy(), jnp.int32), (mask, values))
    answered = names["logits"].argmax(-1)[0]
    assert answered[1:].tolist() == labels[1:].tolist() == [0, 0, 0, 0]  # unswapped it is 1, 1, 1, 0
