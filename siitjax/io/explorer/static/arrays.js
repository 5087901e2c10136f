// Programs of array operations, as siitjax/io/explorer/programs.py writes them: what jax traced, run on plain arrays.
// A value is {shape, data}: data is row by row; true is 1, false 0.

const sizeOf = (shape) => shape.reduce((a, b) => a * b, 1);

function stridesOf(shape) {
  const strides = new Array(shape.length).fill(1);
  for (let i = shape.length - 2; i >= 0; i--) strides[i] = strides[i + 1] * shape[i + 1];
  return strides;
}

// Calls visit(index, position) for every index of a shape, in order.
function forEachIndex(shape, visit) {
  const index = new Array(shape.length).fill(0);
  for (let n = sizeOf(shape), at = 0; at < n; at++) {
    visit(index, at);
    for (let d = shape.length - 1; d >= 0 && ++index[d] === shape[d]; d--) index[d] = 0;
  }
}

const offset = (index, strides) => index.reduce((sum, i, d) => sum + i * strides[d], 0);

function built(shape, at) {
  const data = new Array(sizeOf(shape));
  forEachIndex(shape, (index, i) => { data[i] = at(index, i); });
  return { shape, data };
}

// An operation element by element; an axis of length 1 stands for any length, and a single number for any shape.
const each = (f) => (out, ...given) => {
  const n = sizeOf(out.shape);
  const at = given.map((x) => {
    if (x.data.length === 1) return () => x.data[0];
    if (x.data.length === n) return (_, i) => x.data[i];
    const strides = stridesOf(x.shape).map((stride, d) => (x.shape[d] === 1 ? 0 : stride));
    return (index) => x.data[offset(index, strides)];
  });
  return built(out.shape, (index, i) => f(...at.map((value) => value(index, i))));
};

function reduced(f, first) {
  return (out, x) => {
    const kept = x.shape.map((_, d) => d).filter((d) => !out.axes.includes(d));
    const strides = stridesOf(out.shape);
    const data = new Array(sizeOf(out.shape)).fill(first);
    forEachIndex(x.shape, (index, i) => {
      const to = offset(kept.map((d) => index[d]), strides);
      data[to] = f(data[to], x.data[i]);
    });
    return { shape: out.shape, data };
  };
}

function cumulated(f) {
  return (out, x) => {
    const strides = stridesOf(x.shape), step = strides[out.axis], n = x.shape[out.axis], data = x.data.slice();
    forEachIndex(x.shape, (index, i) => {
      if (index[out.axis] !== 0) return;
      for (let k = 1; k < n; k++) {
        const here = out.reverse ? n - 1 - k : k, last = out.reverse ? here + 1 : here - 1;
        data[i + here * step] = f(data[i + last * step], data[i + here * step]);
      }
    });
    return { shape: x.shape, data };
  };
}

function picked(better) {
  return (out, x) => {
    const axis = out.axes[0], strides = stridesOf(x.shape);
    const kept = x.shape.map((_, d) => d).filter((d) => d !== axis);
    return built(out.shape, (index) => {
      const start = kept.reduce((sum, d, k) => sum + index[k] * strides[d], 0);
      let best = 0;
      for (let k = 1; k < x.shape[axis]; k++) {
        if (better(x.data[start + k * strides[axis]], x.data[start + best * strides[axis]])) best = k;
      }
      return best;
    });
  };
}

function taken(out, x, starts) {  // XLA's gather; an index out of bounds gives the fill, or is clamped where there is none
  const { offset_dims, collapsed, map, sizes, batched, batches, fill } = out;
  const strides = stridesOf(x.shape), to = stridesOf(starts.shape);
  const window = x.shape.map((_, d) => d).filter((d) => !collapsed.includes(d) && !batched.includes(d));
  return built(out.shape, (index) => {
    const batch = index.filter((_, d) => !offset_dims.includes(d));
    const inside = index.filter((_, d) => offset_dims.includes(d));
    const begin = batch.reduce((sum, i, d) => sum + i * to[d], 0);
    const at = new Array(x.shape.length).fill(0);
    map.forEach((d, k) => { at[d] = starts.data[begin + k]; });
    const most = (d) => x.shape[d] - sizes[d];
    if (fill !== null && map.some((d) => at[d] < 0 || at[d] > most(d))) return fill;
    map.forEach((d) => { at[d] = Math.min(Math.max(at[d], 0), most(d)); });
    batched.forEach((d, k) => { at[d] = batch[batches[k]]; });
    window.forEach((d, k) => { at[d] += inside[k]; });
    return x.data[offset(at, strides)];
  });
}

function put(out, x, starts, updates) {  // XLA's scatter, each value in the place of the old one
  const { window_dims, inserted, map } = out;
  const data = x.data.slice(), strides = stridesOf(x.shape), to = stridesOf(starts.shape);
  const window = x.shape.map((_, d) => d).filter((d) => !inserted.includes(d));
  forEachIndex(updates.shape, (index, i) => {
    const batch = index.filter((_, d) => !window_dims.includes(d));
    const inside = index.filter((_, d) => window_dims.includes(d));
    const begin = batch.reduce((sum, b, d) => sum + b * to[d], 0);
    const at = new Array(x.shape.length).fill(0);
    map.forEach((d, k) => { at[d] = starts.data[begin + k]; });
    window.forEach((d, k) => { at[d] += inside[k]; });
    if (at.every((a, d) => a >= 0 && a < x.shape[d])) data[offset(at, strides)] = updates.data[i];
  });
  return { shape: x.shape, data };
}

const OPERATIONS = {
  add: each((a, b) => a + b), sub: each((a, b) => a - b), mul: each((a, b) => a * b), 
  div: (out, a, b) => each((x, y) => (out.whole ? Math.trunc(x / y) : x / y))(out, a, b),
  rem: each((a, b) => a % b), neg: each((a) => -a), sign: each(Math.sign), abs: each(Math.abs),
  max: each((a, b) => Math.max(a, b)), min: each((a, b) => Math.min(a, b)), pow: each((a, b) => a ** b),
  exp: each(Math.exp), log: each(Math.log), sqrt: each(Math.sqrt), tanh: each(Math.tanh), floor: each(Math.floor),
  ceil: each(Math.ceil), logistic: each((a) => 1 / (1 + Math.exp(-a))),
  integer_pow: (out, x) => built(out.shape, (_, i) => x.data[i] ** out.y), square: each((a) => a * a),
  eq: each((a, b) => +(a === b)), ne: each((a, b) => +(a !== b)), lt: each((a, b) => +(a < b)),
  le: each((a, b) => +(a <= b)), gt: each((a, b) => +(a > b)), ge: each((a, b) => +(a >= b)),
  and: each((a, b) => a & b), or: each((a, b) => a | b), xor: each((a, b) => a ^ b), not: each((a) => +!a),
  is_finite: each((a) => +Number.isFinite(a)),
  select_n: each((which, ...cases) => cases[which]), clamp: each((low, x, high) => Math.min(Math.max(x, low), high)),
  convert: (out, x) => ({
    shape: out.shape,
    data: x.data.map((v) => (out.to === "bool" ? +(v !== 0) : out.to === "int" ? Math.trunc(v) : v)),
  }),
  copy: (out, x) => x,
  reshape: (out, x) => ({ shape: out.shape, data: x.data }),
  broadcast_in_dim: (out, x) => {
    const strides = stridesOf(x.shape);
    return built(out.shape, (index) =>
      x.data[x.shape.reduce((sum, n, d) => sum + (n === 1 ? 0 : index[out.dims[d]]) * strides[d], 0)]);
  },
  iota: (out) => built(out.shape, (index) => index[out.axis]),
  slice: (out, x) => {
    const strides = stridesOf(x.shape);
    return built(out.shape, (index) => x.data[offset(index.map((i, d) => out.start[d] + i * out.step[d]), strides)]);
  },
  dynamic_slice: (out, x, ...starts) => {
    const strides = stridesOf(x.shape);
    const from = starts.map((s, d) => Math.min(Math.max(s.data[0], 0), x.shape[d] - out.shape[d]));
    return built(out.shape, (index) => x.data[offset(index.map((i, d) => from[d] + i), strides)]);
  },
  rev: (out, x) => {
    const strides = stridesOf(x.shape);
    const turned = (i, d) => (out.dims.includes(d) ? x.shape[d] - 1 - i : i);
    return built(out.shape, (index) => x.data[offset(index.map(turned), strides)]);
  },
  transpose: (out, x) => {
    const strides = stridesOf(x.shape);
    return built(out.shape, (index) => x.data[index.reduce((sum, i, d) => sum + i * strides[out.dims[d]], 0)]);
  },
  pad: (out, x, value) => {
    const strides = stridesOf(x.shape);
    return built(out.shape, (index) => {
      const at = index.map((i, d) => i - out.low[d]);
      return at.every((a, d) => a >= 0 && a < x.shape[d]) ? x.data[offset(at, strides)] : value.data[0];
    });
  },
  concatenate: (out, ...given) => {
    const parts = given.flatMap((x) => Array.from({ length: x.shape[out.axis] }, (_, i) => [x, i]));
    return built(out.shape, (index) => {
      const [x, i] = parts[index[out.axis]];
      return x.data[offset(index.map((n, d) => (d === out.axis ? i : n)), stridesOf(x.shape))];
    });
  },
  stack: (out, ...given) => built(out.shape, (index) => {
    const inside = index.filter((_, d) => d !== out.axis), x = given[index[out.axis]];
    return x.data[offset(inside, stridesOf(x.shape))];
  }),
  dot_general: (out, a, b) => {
    const [[ca, cb], [ba, bb]] = out.dims, sa = stridesOf(a.shape), sb = stridesOf(b.shape);
    const rest = (x, ...not) => x.shape.map((_, d) => d).filter((d) => !not.flat().includes(d));
    const fa = rest(a, ca, ba), fb = rest(b, cb, bb), inner = ca.map((d) => a.shape[d]);
    return built(out.shape, (index) => {
      const nb = ba.length, at = (dims, from, strides) => dims.reduce((s, d, k) => s + index[from + k] * strides[d], 0);
      const ia = at(ba, 0, sa) + at(fa, nb, sa), ib = at(bb, 0, sb) + at(fb, nb + fa.length, sb);
      let sum = 0;
      forEachIndex(inner, (k) => {
        const oa = k.reduce((s, i, n) => s + i * sa[ca[n]], ia), ob = k.reduce((s, i, n) => s + i * sb[cb[n]], ib);
        sum += a.data[oa] * b.data[ob];
      });
      return sum;
    });
  },
  reduce_sum: reduced((a, b) => a + b, 0), reduce_prod: reduced((a, b) => a * b, 1),
  reduce_max: reduced(Math.max, -Infinity), reduce_min: reduced(Math.min, Infinity),
  reduce_and: reduced((a, b) => a & b, 1), reduce_or: reduced((a, b) => a | b, 0),
  cumsum: cumulated((a, b) => a + b), cumprod: cumulated((a, b) => a * b),
  cummax: cumulated(Math.max), cummin: cumulated(Math.min),
  argmax: picked((a, b) => a > b), argmin: picked((a, b) => a < b),
  gather: taken, scatter: put,
};

// What a program gives for the values it is given.
function runProgram(program, given) {
  const values = program.constants.slice();
  given.forEach((value, i) => { values[program.inputs[i]] = value; });
  for (const [name, inputs, to, out] of program.steps) {
    values[to] = OPERATIONS[name](out, ...inputs.map((i) => values[i]));
  }
  return values[program.output];
}
