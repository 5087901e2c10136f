"""What a device could reach at best, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import cases
from siitjax.bench.absent import Compiled, count_of, step_roofline
from siitjax.bench.flops import step_flops
from siitjax.bench.roofline import DEVICES, Device, Product, products, roofline
from siitjax.model.forms import ROLLED, UNROLLED
from siitjax.siit.config import Hyperparams, TrainConfig
from siitjax.siit.train import make_train
from tests.tiny import NEVER

DEVICE = Device(flops=6e12, bandwidth=1e9, memory=1e9, unit=128)


def test_a_narrow_product_fills_a_units_width():
    # 100 rows pass as 104; 12 inputs and 20 columns are filled up to 128 each, in each of 4 products.
    assert Product(4, 100, 12, 20).flops == 2 * 4 * 100 * 12 * 20
    assert Product(4, 100, 12, 20).as_run(128) == 2 * 4 * 104 * 128 * 128
    assert Product(4, 20, 12, 100).as_run(128) == 2 * 4 * 104 * 128 * 128
    assert Product(1, 256, 128, 256).as_run(128) == Product(1, 256, 128, 256).flops


@pytest.mark.parametrize(
    ("precision", "moved", "seconds", "bound"),
    [
        # As run: 2 * 1024 * 128 * 128 = 33.6 MFLOP, at 1 TFLOP/s in six passes; or 6 TFLOP/s in one.
        ("highest", 1e3, 33_554_432 / 1e12, "units"),
        ("default", 1e3, 33_554_432 / 6e12, "units"),
        ("highest", 1e6, 1e-3, "memory"),
    ],
)
def test_the_slower_of_units_and_memory_bounds_a_program(precision, moved, seconds, bound):
    found = roofline(DEVICE, precision, flops=2e6, moved=moved, found=[Product(1, 1024, 32, 16)])
    assert found.seconds == pytest.approx(seconds)
    assert found.bound == bound
    assert found.padding == pytest.approx(4 * 8)
    assert found.intensity == pytest.approx(2e6 / moved)
    assert found.share == pytest.approx(2e6 / seconds / (6e12 if precision == "default" else 1e12))


def test_products_are_found_with_their_sizes_and_in_a_scan_as_often_as_they_run():
    w = jnp.zeros((3, 5, 5))

    def f(x, y):
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, w)
        return jnp.einsum("bij,bkj->bik", jax.jit(jnp.tanh)(x), y)

    found = [*products(jax.make_jaxpr(f)(jnp.zeros((2, 7, 5)), jnp.zeros((2, 11, 5))).jaxpr)]
    assert found == [Product(3, 14, 5, 5), Product(2, 7, 5, 11)]


@pytest.mark.parametrize("form", [ROLLED, UNROLLED], ids=["in a loop", "written out"])
def test_a_steps_products_are_those_of_its_shapes(form):
    config = TrainConfig(cases.find("paren_checker"))
    train, hyper, root = make_train(config, form), Hyperparams().traced(), jax.random.key(0)
    state = jax.eval_shape(train.init, hyper, root)
    batch = jax.ShapeDtypeStruct((config.batch_size, config.case.n_ctx), jnp.int32)
    jaxpr = jax.make_jaxpr(train.step)(hyper, (state.model, state.opt_state), batch, batch, root).jaxpr
    # The tokens of the first layer have no gradient, and the causal model multiplies a little too.
    assert sum(product.flops for product in products(jaxpr)) == pytest.approx(step_flops(config), rel=0.05)


def test_xla_counts_a_product():
    compiled = jax.jit(jnp.matmul).lower(jnp.zeros((8, 16)), jnp.zeros((16, 32))).compile()
    assert count_of(compiled) == (2 * 8 * 16 * 32, 4 * (8 * 16 + 16 * 32 + 8 * 32))


def test_lanes_fit_a_device_beside_its_code():
    # 100 + 300 bytes a device of 2, with 4 lanes each, are 100 a lane; 1050 less 50 of code hold ten.
    assert Compiled(2, 8, 0.0, 0.0, arguments=100, temporaries=300, code=50).fit(1050.0) == 10


def test_a_step_of_one_lane_on_a_device_that_is_here(monkeypatch):
    mesh = Mesh(np.asarray(jax.devices("cpu")[:1]), ("lane",))
    config = TrainConfig(NEVER, samples=200, batch_size=32)
    assert step_roofline(config, mesh, 1) is None
    monkeypatch.setitem(DEVICES, mesh.devices.flat[0].device_kind, DEVICE)
    found = step_roofline(config, mesh, 1)
    assert found is not None
    assert found.flops > step_flops(config)  # XLA counts what is no product too
    assert found.padding > 10
