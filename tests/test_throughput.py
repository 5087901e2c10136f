"""The instrument: operations counted against XLA's own count, the peer against our transformer, the command."""

import gzip
import json
import re
import warnings
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
from siitjax.analysis.discovery.attribution import eap, eap_ig_inputs
from siitjax.analysis.discovery.pairs import draw_pairs
from siitjax.base.errors import UserError
from siitjax.bench.absent import ALONE, mesh_of
from siitjax.bench.flops import forward_flops, step_flops
from siitjax.bench.trace import time_shares
from siitjax.model.forms import PLAIN
from siitjax.model.swaps import EdgeSwaps
from siitjax.model.transformer import init_transformer
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.interchange import interchange
from siitjax.siit.objective import Sampling, edge_term_losses
from siitjax.siit.train import Purpose, draw_data, draw_key
from tests.commands import run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch

    from siitjax.bench.eap_peer import EapPeer
    from siitjax.bench.edge_peer import EdgePeer
    from siitjax.bench.torch_peer import Peer, patch

TOLERANCE = 1e-5
"""Of logits, as in the tests of parity with TransformerLens."""
COUNT = 0.25
"""Relative: XLA also counts what is no matrix product (softmax, LayerNorm), and leaves out what it can simplify."""
SMALL = ("--case=tests.tiny:NEVER", "--samples=200", "--batch_size=32", "--runs=3")


def test_a_step_of_paren_checker_is_a_gflop_and_a_quarter():
    # A layer: 4 products of 15 x 20 x 20, two of 15 x 15 x 20 for attention, two of 15 x 20 x 80 for the MLP.
    layer = 2 * (4 * 15 * 20 * 20 + 2 * 15 * 15 * 20 + 2 * 15 * 20 * 80)
    forward = 3 * layer + 2 * 15 * 20 * 3
    config = TrainConfig(cases.find("paren_checker"))
    assert forward_flops(config.case.config) == forward
    assert step_flops(config) == 256 * 10 * forward
    assert step_flops(config) / 1e9 == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_a_forward_pass_is_counted_as_xla_counts_it(case):
    model = init_transformer(case.config, key=jax.random.key(0))
    run = jax.jit(lambda tokens: model(tokens)[0])
    counted = run.lower(jnp.zeros(case.n_ctx, jnp.int32)).compile().cost_analysis()
    assert counted is not None
    assert forward_flops(case.config) == pytest.approx(counted["flops"], rel=COUNT)


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
def test_the_peer_patches_as_our_interchange_does():
    case = cases.find("paren_checker")
    config = TrainConfig(case, batch_size=4, samples=100)
    peer, data = Peer(config, threads=1), draw_data(config, 0)
    model = init_transformer(case.config, key=draw_key(jax.random.key(0), Purpose.INIT))
    base, source, labels = peer.batch
    masks = [case.circuit.circuit_mask, case.circuit.unused_mask, *np.eye(len(case.circuit.nodes), dtype=bool)[1:]]
    ours, _ = jax.jit(partial(interchange, model, case.circuit))(
        data.train[:4], data.train[-4:], jnp.asarray(np.stack(masks))
    )
    _, cache = peer.model.run_with_cache(source)
    for mask, expected in zip(masks, ours.swapaxes(0, 1), strict=True):
        with torch.no_grad():
            logits = peer.model.run_with_hooks(
                base, fwd_hooks=patch(case.config, case.circuit.nodes.named(mask), cache)
            )
        np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=TOLERANCE)
    own = jax.vmap(lambda tokens: case.circuit(tokens)[0])(data.train[:4])
    np.testing.assert_array_equal(labels[-1].numpy(), own)


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
def test_the_peer_of_edge_swaps_has_our_losses():
    case = replace(cases.find("left_greater"), n_layers=2, d_model=6, d_head=3, d_mlp=4, n_ctx=6)
    config = TrainConfig(case, batch_size=8, samples=40, sampling=Sampling(swaps="edges", drawn_per="example"))
    peer, hyper = EdgePeer(config, threads=1), Hyperparams().traced()
    model = init_transformer(case.config, key=draw_key(jax.random.key(0), Purpose.INIT))
    base, source = (jnp.asarray(x.numpy(), jnp.int32) for x in peer.batch[:2])
    given = peer.given[1]
    edges, at, numbers = (jnp.asarray(x.transpose(0, 1).numpy()) for x in given[:3])
    swaps = EdgeSwaps(edges > 0, at > 0, numbers.astype(jnp.int32))
    ours = jax.jit(partial(edge_term_losses, model, case, form=PLAIN))(base, source, swaps, hyper.w_changed)
    losses = peer.losses(given).detach().numpy()
    np.testing.assert_allclose(losses, ours, rtol=TOLERANCE)
    none = peer.losses(given._replace(edges=0 * given.edges)).detach().numpy()
    assert np.abs(none - losses)[1:].min() > 100 * TOLERANCE, "the swaps are felt"


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
def test_attribution_in_torch_gives_our_scores():
    trained = cases.load("left_greater")
    pairs = draw_pairs(trained.case, 12)
    peer = EapPeer(trained, pairs)
    for ours, theirs in ((eap, peer.eap), (eap_ig_inputs, peer.eap_ig_inputs)):
        scores = ours(trained.model, trained.case, pairs)
        np.testing.assert_allclose(theirs(), scores, rtol=0, atol=TOLERANCE * np.abs(scores).max())


def test_the_command_prints_a_row_a_form_and_writes_them(tmp_path):
    small = (*SMALL, "--lanes=1")
    command = ("-W", "ignore", "-m", "sweeps.throughput", *small, "--peer=torch", f"--out={tmp_path}")
    ended = run(*command)
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "throughput.json").read_text())
    rows = [(row["form"], row["lanes"]) for row in found["timings"]]
    assert rows == [(form, 1) for form in ("plain", "plain, pinned", "fast", "torch")]
    assert all(row["step_ms"] > 0 and row["epoch_ms"] > row["step_ms"] for row in found["timings"])
    (cost,) = found["costs"]
    assert 0 < cost["occupancy"] <= 1
    assert cost["cached_s"] < cost["compile_s"]
    assert (tmp_path / "throughput.png").exists()
    again = run(*command)
    assert (again.code, again.out) == (2, "")
    assert "exists; choose another --out" in again.err


@pytest.mark.slow
def test_a_step_under_swaps_of_edges_is_timed_beside_that_of_nodes():
    ended = run("-W", "ignore", "-m", "sweeps.throughput", *SMALL, "--lanes=1", "--swaps=edges", "--peer=torch")
    assert ended.code == 0, ended.err
    assert "fast, nodes" in ended.out
    assert "torch" in ended.out
    assert "1 at once: a step under swaps of edges takes " in ended.out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpu", 'the topology is "gpu"; give a TPU'),
        ("cuda-a100:1x1x1", 'the topology is "cuda-a100:1x1x1"; give a TPU'),
        ("tpu-v5e:9x9", 'there is no compiler for "tpu-v5e:9x9" here'),
        ("cuda-h100:1x1x1", 'there is no compiler for "cuda-h100:1x1x1" here .* pip install jax-cuda12-plugin'),
    ],
)
def test_a_device_that_is_nowhere_is_refused(name, said, monkeypatch):
    for variable, value in ALONE.items():
        monkeypatch.setenv(variable, value)  # so that they are not left behind
    with pytest.raises(UserError, match=f"^{said}"):
        mesh_of(name)


PROGRAM = """
  %while.1 = (f32[2]) while(%t), body=%b, metadata={op_name="jit(steps)/while"}
  %dot.2 = f32[2,3]{1,0} dot(%a, %b), metadata={op_name="jit(steps)/while/blocks.0.attn/dot_general"}
  ROOT %fusion.3 = f32[2] fusion(%c), metadata={op_name="jit(steps)/while/blocks.0.attn/exp"}
  %fusion.4 = f32[2] fusion(%c), metadata={op_name="jit(steps)/while/blocks.12.mlp/select_n"}
"""


def test_time_that_operations_within_others_take_is_counted_once(tmp_path):
    """By hand: 10 in the loop, of which 2 are a product, 3 attention with 1 of an MLP's inside; then 2 of an MLP's on
    another thread; what is no operation is left out."""
    spans = [("while.1", 0, 10, 1), ("dot.2", 1, 2, 1), ("fusion.3", 5, 3, 1), ("fusion.4", 6, 1, 1)]
    spans += [("fusion.4", 0, 2, 2), ("ThreadPool", 0, 99, 1)]
    events = [{"ph": "X", "name": n, "ts": ts, "dur": dur, "pid": 1, "tid": tid} for n, ts, dur, tid in spans]
    with gzip.open(tmp_path / "perfetto_trace.json.gz", "wt") as file:
        json.dump({"traceEvents": [{"ph": "M", "name": "fusion.4"}, *events]}, file)
    found = time_shares(PROGRAM, tmp_path)
    twelfths = {"matrix products": 2, "attention, the rest": 2, "MLPs, the rest": 3, "other": 5}
    assert found == pytest.approx({part: n / 12 for part, n in twelfths.items()})
    assert time_shares("", tmp_path) == {}


@pytest.mark.slow
def test_lanes_on_devices_are_timed_in_one_process(tmp_path):
    small = (*SMALL, "--lanes=2", "--devices=2", "--profile")
    ended = run("-W", "ignore", "-m", "sweeps.throughput", *small, f"--out={tmp_path}")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "throughput.json").read_text())
    assert [(row["form"], row["lanes"]) for row in found["timings"]] == [("plain", 2), ("fast", 2)]
    assert [*(tmp_path / "profile").rglob("perfetto_trace.json.gz")]
    assert re.search(r"of a step: matrix products \d+%, attention, the rest \d+%", ended.out)
