"""The page that one looks into a model with: its scripts compute what JAX does, in V8 and in a browser."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
import siitjax
from siitjax.base.errors import UserError
from siitjax.causal.circuit import Variable
from siitjax.cli import explore
from siitjax.io.explorer.drawing import STYLE, draw
from siitjax.io.explorer.page import SCRIPTS, STATIC, examples, page
from siitjax.io.explorer.programs import program
from siitjax.model.nodes import head
from tests.commands import run
from tests.hooked import VARIANTS, random_model

TOLERANCE = 1e-4
"""Of logits: the page adds up in double precision, JAX in single."""
LIBRARY = "\n".join((STATIC / name).read_text() for name in SCRIPTS if name != "page.js")
# What a browser has and V8 alone has not.
ATOB = """
const atob = (text) => {
  const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  let bits = 0, held = 0, out = "";
  for (const letter of text.replace(/=/g, "")) {
    bits = bits * 64 + letters.indexOf(letter);
    if ((held += 6) >= 8) { held -= 8; out += String.fromCharCode(bits >> held); bits &= (1 << held) - 1; }
  }
  return out;
};
"""


@pytest.fixture(scope="module")
def v8():
    from py_mini_racer import MiniRacer

    racer = MiniRacer()
    racer.eval(f"{ATOB}{LIBRARY}\n0")

    def call(function: str, *given):
        return json.loads(str(racer.eval(f"JSON.stringify(({function})(...{json.dumps(given)}))")))

    yield call
    racer.close()


def on_arrays(v8, written: dict, *given: np.ndarray) -> np.ndarray:
    values = [{"shape": list(x.shape), "data": x.astype(float).ravel().tolist()} for x in given]
    found = v8("(program, ...given) => runProgram(program, given)", written, *values)
    return np.array(found["data"]).reshape(found["shape"])


X = np.array([[3, 1, 2], [0, 5, 4]], np.int32)
FUNCTIONS = {
    "sums along an axis, there and back": lambda x: jnp.cumsum(x, 1) + jnp.flip(jnp.cumsum(jnp.flip(x, 0), 0), 0),
    "running extremes": lambda x: jax.lax.cummin(x, 1) - jax.lax.cummax(x, 1, reverse=True),
    "products": lambda x: x @ x.T,
    "rows by number, one of them beyond the last": lambda x: x[jnp.array([1, 0, 7])],
    "elements by number": lambda x: jnp.take_along_axis(x, jnp.argmin(x, 1, keepdims=True), 1),
    "one element set": lambda x: x.at[0].set(9),
    "turned, padded, cut": lambda x: jnp.pad(jnp.roll(x, 1, 1), ((0, 1), (2, 0)))[:, 1:],
    "choices": lambda x: jnp.where(x % 2 == 0, -x, jnp.clip(x, 1, 3)),
    "reductions": lambda x: (
        jnp.stack([x.sum(0), x.max(0), *(b.astype(int) for b in ((x > 1).any(0), (x > 0).all(0)))]).T
    ),
    "whole division": lambda x: jnp.floor_divide(x, 2) + jax.lax.div(-x, jnp.int32(2)),
    "numbers": lambda x: jnp.sqrt(x.astype(jnp.float32)) / 3 + jnp.exp(-x.astype(jnp.float32)) ** 2,
    "a function within": lambda x: jax.jit(lambda y: jax.nn.one_hot(y, 6))(x).sum(0),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_program_gives_what_jax_gives(v8, function):
    written = program(function, jax.ShapeDtypeStruct(X.shape, X.dtype))
    np.testing.assert_allclose(on_arrays(v8, written, X), np.asarray(function(jnp.asarray(X)), float), rtol=1e-6)


def test_what_a_page_cannot_run_is_named():
    with pytest.raises(UserError, match='computed with the operation "while", which a page cannot run'):
        program(
            lambda x: jax.lax.while_loop(lambda y: (y < 9).all(), lambda y: y + 1, x),
            jax.ShapeDtypeStruct((2,), jnp.int32),
        )


def described(case, model) -> dict:
    """What the page's models are made of."""
    from siitjax.io.explorer.page import _circuit, _config, _weights

    return {
        "config": {**_config(case), "causal": case.config.causal},
        "weights": _weights(model),
        "circuit": _circuit(case),
    }


KINDS = ("gelu", "bidirectional", "no_layer_norm", "attn_only")
BOTH = """(about, base, source, mask) => {
  const model = new Transformer(about.config, about.weights), circuit = new Circuit(about.circuit);
  const sees = (reader, sender, s) => mask[reader][sender][s];
  const there = [model.run(source), circuit.run(source)];
  const swapped = circuit.run(base, sees, there[1].values);
  const run = model.run(base, sees, there[0].written);
  return { logits: run.logits, label: swapped.label.data, counted: circuit.countedTokens(base) };
}"""


def check(v8, case, model, n: int, seed: int = 0) -> None:
    """Some pairs, each under a random swap of edges at positions: logits to a tolerance, labels to the number."""
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(case.draw(2 * n, 10 * max(len(case.tasks), 1), rng)[0][: 2 * n])
    size, about = len(case.circuit.nodes), described(case, model)
    for base, source in zip(tokens[:n], tokens[n:], strict=True):
        mask = rng.random((size, size, case.n_ctx)) < 0.3
        found = v8(BOTH, about, base.tolist(), source.tolist(), mask.tolist())
        _, held = model(source)
        logits, _ = model(base, (jnp.asarray(mask), held))
        np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=TOLERANCE)
        _, values = case.circuit(source)
        labels, _ = case.circuit(base, (jnp.asarray(mask), values))
        np.testing.assert_array_equal(found["label"], np.ravel(labels))
        np.testing.assert_array_equal(found["counted"], case.counted_mask(base))


@pytest.mark.parametrize("name", ["2", "0+1+2+3"])
def test_both_models_answer_as_in_jax_under_random_swaps(v8, name):
    trained = siitjax.load(name)
    check(v8, trained.case, trained.model, 3)


@pytest.mark.parametrize("config", [VARIANTS[name] for name in KINDS], ids=KINDS)
def test_so_do_transformers_of_every_kind(v8, config):
    case = siitjax.find_case("left_greater")
    names = ("n_layers", "d_model", "d_head", "d_mlp", "mlp_parts", "act_fn", "attn_only", "layer_norm")
    names = (*names, "attention_dir")
    shape = {name: getattr(config, name) for name in names}
    variable = Variable("first", ("tokens",), lambda tokens: tokens == 2, head(0, 0))
    case = replace(case, variables=(variable,), n_outputs=2, n_ctx=6, n_heads=config.n_heads, **shape)
    check(v8, case, random_model(case.config), 2)


def test_a_circuit_is_drawn_with_each_node_and_edge_once():
    case = cases.build("1+2")
    root = ET.fromstring(draw(case, all_edges=True))
    groups = [g for g in root.iter() if g.get("class", "").startswith(("node", "edge"))]
    nodes = [g.get("data-node") for g in groups if g.get("data-node")]
    assert nodes == [*map(str, case.circuit.nodes), "logits"]
    drawn = {g.get("data-edge"): g.get("class") for g in groups if g.get("data-edge")}
    assert [*drawn] == [f"{a}->{b}" for a, b in case.circuit.nodes.possible_edges]
    true = {f"{a}->{b}" for a, b in case.circuit.edges}
    assert {edge for edge, kind in drawn.items() if kind != "edge outside"} == true
    alone = ET.fromstring(draw(case))
    assert {g.get("data-edge") for g in alone.iter() if g.get("data-edge")} == true


@pytest.mark.parametrize("name", ["2", "share_of_x"])
def test_an_edge_of_the_circuit_passes_behind_no_other_node(name):
    """Sampled from the SVG itself: behind a box it would look as if it ended in that node."""
    root = ET.fromstring(draw(cases.build(name)))
    number = lambda element, *names: [float(element.get(n)) for n in names]
    boxes = {
        g.get("data-node"): number(next(c for c in g if c.tag.endswith("rect")), "x", "y", "width", "height")
        for g in root.iter()
        if g.get("data-node")
    }
    for g in (g for g in root.iter() if g.get("data-edge")):
        ends = str(g.get("data-edge")).split("->")
        path = next(str(child.get("d")) for child in g if child.get("d"))
        points = np.array([float(x) for x in re.findall(r"-?[0-9.]+", path)]).reshape(4, 2)
        for t in np.linspace(0, 1, 50):
            x, y = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]) @ points
            under = [n for n, (left, top, w, h) in boxes.items() if left < x < left + w and top < y < top + h]
            assert not {*under} - {*ends}, (g.get("data-edge"), under)


def test_an_example_differs_in_its_variable_and_its_swap_changes_the_label():
    case = cases.build("1+2")
    found = examples(case)
    assert [e["variable"] for e in found] == [v.name for v in case.variables if v.nodes]
    order = ["tokens", *(v.name for v in case.circuit.ordered)]
    for example, variable in zip(found, (v for v in case.variables if v.nodes), strict=True):
        base, source = (jnp.asarray(example[which], jnp.int32) for which in ("base", "source"))
        (labels, values), (_, held) = case.circuit(base), case.circuit(source)
        i = order.index(variable.name)
        assert (np.asarray(values[i]) != np.asarray(held[i])).any()
        mask = jnp.asarray(case.circuit.nodes.mask(variable.nodes))
        assert (np.asarray(case.circuit(base, (mask, held))[0]) != np.asarray(labels)).any()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    ended = run("-m", "siitjax", "explore", "left_greater", str(file), "--pairs=50")
    assert ended.code == 0, ended.err
    assert re.fullmatch(r".*page\.html: 0\.0\d MB, \d+ s\n", ended.out)
    return file


def test_what_a_colour_says_stands_there_in_another_way_too():
    """Dashes of what is swapped, dots of silent edges, bold of changed labels, wavy lines beneath wrong answers."""
    style = (STATIC / "page.css").read_text()
    rule = lambda selector: style.partition(selector + " {")[2].partition("}")[0]
    assert "stroke-dasharray" in rule("#drawing .node.swapped rect")
    assert "stroke-dasharray" in rule("#drawing .edge.swapped path:not(.hit)")
    assert "font-weight" in rule("td.changed")
    assert "underline wavy" in rule("td.wrong")
    assert "line-through" in rule('thead button[aria-pressed="false"]')
    silent = next(line for line in STYLE.splitlines() if ".edge.silent" in line)
    assert "stroke-dasharray" in silent


def test_a_page_stands_alone(written):
    text = written.read_text()
    assert "@@" not in text
    links = re.findall(r"""(?:src|href)=["']|https?://[^"' ]+|@import|url\(""", text)
    assert {*links} == {"http://www.w3.org/2000/svg"}  # the name of SVG's elements, which nothing is fetched from
    (found,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(found)
    assert {*data["measured"]["swaps"]} >= {"MLP0", "L0H1, MLP0", "L0H1->MLP0", "embed->L0H0"}
    right, of, changed_right, changed = data["measured"]["swaps"]["MLP0"]
    assert right == of == 50 * 15
    assert changed_right == changed > 0


def test_bad_input_is_one_line(written, tmp_path, commands):
    before = written.read_bytes()
    (tmp_path / "file").write_text("")
    for words, said in (
        (("left_greter", tmp_path / "new.html"), 'did you mean "left_greater"?'),
        (("left_greater", written), "exists, and a page replaces nothing; choose another OUT"),
        (("left_greater", tmp_path / "file" / "new.html"), "cannot be written"),
        (("left_greater",), "OUT is missing: siitjax explore left_greater page.html"),
        (("1", "folder", "--all"), "--all takes one word, the folder OUT, but 1 folder was given"),
    ):
        (ended,) = commands(explore.Explore, [*map(str, words)])
        assert (ended.code, ended.out) == (2, ""), ended.err
        assert said in ended.err
        assert ended.err.count("\n") == 1
    assert written.read_bytes() == before
    assert not (tmp_path / "new.html").exists()


def test_a_page_of_every_shipped_model_and_an_index_are_a_folder(tmp_path, monkeypatch, capsys):
    """Of one model here, as all of them take minutes."""
    monkeypatch.setattr(type(explore.registry.own_tasks()), "shipped", ("1", "1@nodes"))
    assert explore.Explore(str(tmp_path / "out"), all=True, pairs=50).run() == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"1.html", "index.html"}
    index = (tmp_path / "out" / "index.html").read_text()
    assert '<tr><td><a href="1.html">1</a></td><td>left_greater</td><td>1</td><td>12</td><td>100</td>' in index
    assert "{" not in index.split("</style>")[1]
    assert capsys.readouterr().out.endswith(f"1 pages and index.html are written to {tmp_path / 'out'}\n")


def test_a_case_of_the_frozen_rule_has_no_page():
    trained = siitjax.load("1")
    frozen = replace(trained, case=replace(trained.case, counterfactual="frozen"))
    with pytest.raises(UserError, match='is of the rule "frozen"'):
        page(frozen, 10)


def by_keyboard(browser) -> None:
    """Tab leads to every node, edge and position that is shown; Enter and the space bar turn each on, and off again."""
    body = browser.find_element("css selector", "body")
    reached: list[str] = []
    state = "const e = document.activeElement; return [e.dataset.node || e.dataset.edge || e.dataset.position || '', "
    state += "e.getAttribute('aria-pressed'), e.getAttribute('aria-label')]"
    browser.execute_script("document.activeElement.blur(); window.getSelection().collapse(document.body, 0)")
    for _ in range(400):
        body.send_keys("\t") if not reached else browser.switch_to.active_element.send_keys("\t")
        name, pressed, label = browser.execute_script(state)
        if not name:
            if reached and browser.execute_script("return document.activeElement === document.body"):
                break
            continue
        if name in reached:
            break
        reached.append(name)
        assert label
        for key in ("\n", " "):
            browser.switch_to.active_element.send_keys(key)
            now = browser.execute_script(state)
            assert now[0] == name  # the focus stays
            assert now[1] == ("false" if pressed == "true" else "true")
            pressed = now[1]
    shown = "[data-node], #drawing .edge:not(.outside), #drawing .edge.outside.swapped, [data-position]"
    there = browser.execute_script(
        f"return [...document.querySelectorAll('{shown}')]"
        ".map((e) => e.dataset.node || e.dataset.edge || e.dataset.position).filter((name) => name !== 'logits')"
    )
    assert {*reached} == {*there}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("1+2", (0, 0)), ("0+1+2+3", (0, 4))])
@pytest.mark.parametrize("width", [1200, 390])
def test_in_a_browser_a_node_an_edge_and_a_position_are_clicked_and_the_answers_are_those_of_jax(
    name, head, width, tmp_path
):
    """With -s it says how long the page took to open."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("there is no chromedriver; apt-get install chromium-driver brings it")
    trained = siitjax.load(name)
    file = tmp_path / "page.html"
    file.write_text(page(trained, 50))
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", f"--window-size={width},900"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get(file.as_uri())
        timing = browser.execute_script("return performance.timing.domComplete - performance.timing.navigationStart")
        print(f"{name}, {width} pixels: {file.stat().st_size / 1e6:.2f} MB, opens in {timing} ms")
        edge = f"L{head[0]}H{head[1]}->MLP3"
        for chosen in ('[data-node="MLP0"] text', f'[data-edge="{edge}"] path.hit', '[data-position="4"]'):
            element = browser.find_element("css selector", chosen)
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            if chosen.startswith("[data-edge"):  # a curve's middle may not lie in the middle of its box
                browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", element)
            else:
                element.click()
        if name == "1+2":
            by_keyboard(browser)
        base, source = (jnp.asarray(browser.execute_script(f"return shown.{w}"), jnp.int32) for w in ("base", "source"))
        logits = browser.execute_script("return shown.swapped.model.logits")
        cells = browser.execute_script(
            "const all = (within, what) => [...within.querySelectorAll(what)];"
            "return all(document, '#answers tbody tr').map((row) => all(row, 'td').map((cell) => cell.textContent))"
        )
    finally:
        browser.quit()
    case, nodes = trained.case, trained.case.circuit.nodes
    mask = np.repeat((nodes.as_edges(nodes.mask([siitjax.mlp(0)])))[..., None], len(base), 2)
    mask |= nodes.edge_mask([(siitjax.head(*head), siitjax.mlp(3))])[..., None]
    mask[..., 4] = False
    _, held = trained.model(source)
    expected, _ = trained.model(base, (jnp.asarray(mask), held))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
    _, values = case.circuit(source)
    labels, _ = case.circuit(base, (jnp.asarray(mask), values))
    n = len(cells[0])
    assert cells[3] == [str(label) for label in labels[:n].tolist()]
    assert cells[4][1:] == [str(answer) for answer in expected.argmax(-1)[1:n].tolist()]
