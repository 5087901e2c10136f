"""What a variable computes, as a program that a web page can run: the operations that JAX traces, as JSON.

`siitjax/io/explorer/static/arrays.js` runs them. A program has constants, the places of its inputs, steps
[operation, places of what it takes, place of what it gives, parameters], and the place of its output.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
from jax.lax import GatherScatterMode

from siitjax.base.errors import UserError

CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")
"""Operations that are a program of their own, which is written out in their place."""
COPIES = ("copy", "copy_p", "stop_gradient", "optimization_barrier", "reduce_precision")
ELEMENTWISE = (
    *("add", "sub", "mul", "div", "rem", "neg", "sign", "abs", "max", "min", "pow", "exp", "log", "sqrt", "tanh"),
    *("floor", "ceil", "logistic", "square", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not"),
    *("is_finite", "select_n", "clamp", "dynamic_slice"),
)


def program(compute: Callable[..., jax.Array], *given: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """The program of a pure JAX function of arrays.

    Raises:
        UserError: it uses an operation that a page cannot run, such as a loop.

    Example:
        >>> import jax.numpy as jnp
        >>> doubled = program(lambda x: x + x, jax.ShapeDtypeStruct((3,), jnp.int32))
        >>> doubled["steps"]
        [['add', [0, 0], 1, {'shape': [3]}]]
    """
    traced = jax.make_jaxpr(compute)(*given)
    written = _Written()
    inputs = [written.new() for _ in traced.jaxpr.invars]
    (output,) = written.of(traced, inputs)
    found = {"constants": written.constants, "inputs": inputs, "steps": written.steps, "output": output}
    return json.loads(json.dumps(found, default=int))  # NumPy's integers, which JSON does not know


class _Written:
    """A program that is being written."""

    def __init__(self) -> None:
        self.constants: list[Any] = []
        self.steps: list[list[Any]] = []

    def new(self, value: Any = None) -> int:
        """A new place, which holds a constant or nothing yet."""
        held = None
        if value is not None:
            array = np.asarray(value)
            numbers = array.astype(float if array.dtype.kind == "f" else int)
            held = {"shape": list(array.shape), "data": numbers.ravel().tolist()}
        self.constants.append(held)
        return len(self.constants) - 1

    def of(self, closed: ClosedJaxpr, inputs: list[int]) -> list[int]:
        """Writes the steps of a traced function of values at these places; gives the places of what it returns."""
        jaxpr: Jaxpr = closed.jaxpr
        places: dict[Var, int] = dict(zip(jaxpr.invars, inputs, strict=True))
        places |= {var: self.new(value) for var, value in zip(jaxpr.constvars, closed.consts, strict=True)}
        at = lambda atom: self.new(atom.val) if isinstance(atom, Literal) else places[atom]
        for step in jaxpr.eqns:
            name, given = step.primitive.name, [at(atom) for atom in step.invars]
            if name in CALLS:
                inner = step.params.get("jaxpr") or step.params.get("call_jaxpr") or step.params["fun_jaxpr"]
                inner = inner if hasattr(inner, "consts") else ClosedJaxpr(inner, [])
                found = self.of(inner, given[: len(inner.jaxpr.invars)])
                places |= dict(zip(step.outvars, found, strict=True))
                continue
            if len(step.outvars) != 1:
                raise UserError(_unknown(name))
            (out,) = step.outvars
            places[out] = self.new()
            word, parameters = _operation(name, step)
            given_out: Any = out.aval
            shape = {"shape": list(given_out.shape)}
            self.steps.append([word, given, places[out], {**shape, **parameters}])
        return [at(atom) for atom in jaxpr.outvars]


def _operation(name: str, step: Any) -> tuple[str, dict[str, Any]]:
    """What an operation is called in the page, and its parameters there."""
    p, out = step.params, step.outvars[0].aval
    if name == "div":
        return name, {"whole": np.dtype(out.dtype).kind in "iu"}
    if name == "dynamic_slice" or name in ELEMENTWISE:
        return name, {}
    if name in COPIES:
        return "copy", {}
    if name == "integer_pow":
        return name, {"y": p["y"]}
    if name == "convert_element_type":
        kind = np.dtype(p["new_dtype"]).kind
        return "convert", {"to": {"b": "bool", "i": "int", "u": "int"}.get(kind, "float")}
    if name in ("reshape", "squeeze", "expand_dims"):
        return "reshape", {}
    if name == "broadcast_in_dim":
        return name, {"dims": list(p["broadcast_dimensions"])}
    if name == "iota":
        return name, {"axis": p["dimension"]}
    if name == "slice":
        return name, {"start": list(p["start_indices"]), "step": list(p["strides"] or [1] * len(out.shape))}
    if name in ("rev", "transpose"):
        return name, {"dims": list(p["dimensions" if name == "rev" else "permutation"])}
    if name == "pad" and not any(inner for _, _, inner in p["padding_config"]):
        return name, {"low": [low for low, _, _ in p["padding_config"]]}
    if name == "concatenate":
        return name, {"axis": p["dimension"]}
    if name == "stack":
        return name, {"axis": p["axis"]}
    if name == "dot_general":
        return name, {"dims": [[list(dims) for dims in pair] for pair in p["dimension_numbers"]]}
    if name.startswith("reduce_") or name in ("argmax", "argmin"):
        return name, {"axes": list(p["axes"])}
    if name in ("cumsum", "cumprod", "cummax", "cummin"):
        return name, {"axis": p["axis"], "reverse": p["reverse"]}
    if name == "gather":
        d = p["dimension_numbers"]
        about = {"offset_dims": d.offset_dims, "collapsed": d.collapsed_slice_dims, "map": d.start_index_map}
        about |= {
            "sizes": p["slice_sizes"],
            "batched": d.operand_batching_dims,
            "batches": d.start_indices_batching_dims,
        }
        fills = p["mode"] == GatherScatterMode.FILL_OR_DROP
        return name, {**{key: list(value) for key, value in about.items()}, "fill": _fill(p, out) if fills else None}
    if name == "scatter" and not p["dimension_numbers"].operand_batching_dims:
        d = p["dimension_numbers"]
        about = {"window_dims": d.update_window_dims, "inserted": d.inserted_window_dims}
        return name, {key: list(value) for key, value in {**about, "map": d.scatter_dims_to_operand_dims}.items()}
    raise UserError(_unknown(name))


def _fill(parameters: dict[str, Any], out: Any) -> int | float:
    """What JAX gives for an index out of bounds; 0 for its nan, which JSON has not."""
    given = parameters["fill_value"]
    if given is None:
        return int(np.iinfo(out.dtype).min) if np.dtype(out.dtype).kind == "i" else 0.0
    return np.asarray(given).item()


def _unknown(name: str) -> str:
    return (
        f'a variable is computed with the operation "{name}", which a page cannot run; write its compute without it, '
        "for instance without loops"
    )
