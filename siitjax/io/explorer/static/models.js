// Both models under one swap. A swap is sees(reader, sender, position): whether the reader sees the source's value.

const LN_EPS = 1e-5;

function decoded(text) {  // base64 of float32 numbers, little end first
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

function erf(x) {  // to 1.2e-7 (Numerical Recipes, erfcc)
  const z = Math.abs(x), t = 1 / (1 + 0.5 * z);
  const terms = [-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587,
    -0.82215223, 0.17087277];
  const series = terms.reduceRight((sum, term) => term + t * sum, 0);
  const tail = t * Math.exp(-z * z + series);
  return x >= 0 ? 1 - tail : tail - 1;
}

const ACTIVATIONS = {
  relu: (x) => Math.max(x, 0),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_new: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};

class Transformer {
  constructor(config, weights) {
    this.config = config;
    this.weights = {};
    for (const [name, text] of Object.entries(weights)) this.weights[name] = decoded(text);
  }

  // Logits (seq, out), what each sender wrote (sender, seq, d_model), attention (head of all, seq, seq).
  run(tokens, sees, there) {
    const { n_layers, n_heads, d_model: m, d_head, d_mlp, mlp_parts, causal, attn_only } = this.config;
    const w = this.weights, seq = tokens.length;
    const written = [], patterns = [];
    const stream = new Float64Array(seq * m), first = new Float64Array(seq * m);
    tokens.forEach((token, s) => {
      for (let k = 0; k < m; k++) {
        first[s * m + k] = w["embed.W_E"][token * m + k];
        stream[s * m + k] = first[s * m + k] + w["pos_embed.W_pos"][s * m + k];
      }
    });
    written.push(first);
    let reader = 0;

    // The stream as one reader sees it, normalised.
    const seen = (name) => {
      const x = Float64Array.from(stream);
      if (sees) {
        written.forEach((own, sender) => {
          for (let s = 0; s < seq; s++) {
            if (!sees(reader, sender, s)) continue;
            for (let k = 0; k < m; k++) x[s * m + k] += there[sender][s * m + k] - own[s * m + k];
          }
        });
      }
      reader++;
      return this.normalised(x, name, seq);
    };
    const write = (what) => {
      written.push(what);
      for (let i = 0; i < stream.length; i++) stream[i] += what[i];
    };
    const bias = (name) => {
      for (let i = 0; i < stream.length; i++) stream[i] += w[name][i % m];
    };

    for (let layer = 0; layer < n_layers; layer++) {
      const block = `blocks.${layer}`;
      const heads = [];
      for (let h = 0; h < n_heads; h++) {
        const x = seen(`${block}.ln1`);
        const into = (kind) => {
          const out = new Float64Array(seq * d_head), W = w[`${block}.attn.W_${kind}`], b = w[`${block}.attn.b_${kind}`];
          for (let s = 0; s < seq; s++) {
            for (let d = 0; d < d_head; d++) {
              let sum = b[h * d_head + d];
              for (let k = 0; k < m; k++) sum += x[s * m + k] * W[(h * m + k) * d_head + d];
              out[s * d_head + d] = sum;
            }
          }
          return out;
        };
        const q = into("Q"), k = into("K"), v = into("V"), pattern = [], out = new Float64Array(seq * m);
        const W_O = w[`${block}.attn.W_O`];
        for (let s = 0; s < seq; s++) {
          const last = causal ? s + 1 : seq, scores = [];
          for (let t = 0; t < last; t++) {
            let sum = 0;
            for (let d = 0; d < d_head; d++) sum += q[s * d_head + d] * k[t * d_head + d];
            scores.push(sum / Math.sqrt(d_head));
          }
          const top = Math.max(...scores), powers = scores.map((x) => Math.exp(x - top));
          const total = powers.reduce((a, b) => a + b, 0), row = powers.map((p) => p / total);
          pattern.push(row);
          for (let d = 0; d < d_head; d++) {
            let z = 0;
            row.forEach((p, t) => { z += p * v[t * d_head + d]; });
            for (let i = 0; i < m; i++) out[s * m + i] += z * W_O[(h * d_head + d) * m + i];
          }
        }
        patterns.push(pattern);
        heads.push(out);
      }
      heads.forEach(write);
      bias(`${block}.attn.b_O`);
      if (attn_only) continue;
      const act = ACTIVATIONS[this.config.act_fn], parts = [];
      const W_in = w[`${block}.mlp.W_in`], b_in = w[`${block}.mlp.b_in`], W_out = w[`${block}.mlp.W_out`];
      let firstNeuron = 0;
      for (const size of mlp_parts) {
        const x = seen(`${block}.ln2`), out = new Float64Array(seq * m), end = firstNeuron + size;
        for (let s = 0; s < seq; s++) {
          for (let n = firstNeuron; n < end; n++) {
            let sum = b_in[n];
            for (let k = 0; k < m; k++) sum += x[s * m + k] * W_in[k * d_mlp + n];
            const post = act(sum);
            if (post !== 0) for (let i = 0; i < m; i++) out[s * m + i] += post * W_out[n * m + i];
          }
        }
        parts.push(out);
        firstNeuron = end;
      }
      parts.forEach(write);
      bias(`${block}.mlp.b_out`);
    }
    const x = seen("ln_final"), outputs = this.config.d_vocab_out, logits = [];
    for (let s = 0; s < seq; s++) {
      const row = [];
      for (let o = 0; o < outputs; o++) {
        let sum = w["unembed.b_U"][o];
        for (let k = 0; k < m; k++) sum += x[s * m + k] * w["unembed.W_U"][k * outputs + o];
        row.push(sum);
      }
      logits.push(row);
    }
    return { logits, written, patterns };
  }

  normalised(x, name, seq) {
    if (!this.config.layer_norm) return x;
    const m = this.config.d_model, W = this.weights[`${name}.w`], b = this.weights[`${name}.b`];
    for (let s = 0; s < seq; s++) {
      let mean = 0, variance = 0;
      for (let k = 0; k < m; k++) mean += x[s * m + k] / m;
      for (let k = 0; k < m; k++) variance += (x[s * m + k] - mean) ** 2 / m;
      const scale = 1 / Math.sqrt(variance + LN_EPS);
      for (let k = 0; k < m; k++) x[s * m + k] = (x[s * m + k] - mean) * scale * W[k] + b[k];
    }
    return x;
  }
}

// The causal model: siitjax.causal.circuit, in which a variable has a value for each reader.
class Circuit {
  constructor(described) {
    Object.assign(this, described);  // variables, senders, readers, units, counted
    this.byName = new Map(this.variables.map((v) => [v.name, v]));
    this.label = this.variables.find((v) => v.label).name;
  }

  // The label and every variable's own value, {shape, data} by name; `there` is what a source run gave.
  run(tokens, sees, there) {
    const own = new Map(), input = { shape: [tokens.length], data: tokens.slice() };
    const unit = (node) => (node === "logits" ? "logits" : this.units[node]);
    const value = (name, seenBy) => {
      const variable = this.byName.get(name);
      const held = variable ? variable.nodes : ["embed"];
      const at = held.length ? held : seenBy, key = `${name}@${at.join("+")}`;
      if (!own.has(key)) {
        own.set(key, variable ? runProgram(variable.program, variable.reads.map((read) => value(read, at))) : input);
      }
      const mine = own.get(key);
      if (!sees || !held.length || unit(held[0]) === unit(seenBy[0])) return mine;
      const pairs = seenBy.flatMap((b) => held.filter((a) => this.depths[a] < this.depths[b]).map((a) => [b, a]));
      const from = there.get(name), each = mine.data.length / tokens.length;
      const taken = tokens.map((_, s) =>
        pairs.every(([b, a]) => sees(this.readers.indexOf(b), this.senders.indexOf(a), s)));
      return { shape: mine.shape, data: mine.data.map((x, i) => (taken[Math.floor(i / each)] ? from.data[i] : x)) };
    };
    const label = value(this.label, ["logits"]);
    const values = new Map([["tokens", input]]);
    for (const v of this.variables) {
      const at = v.nodes.length ? v.nodes : ["logits"];
      value(v.name, at);
      values.set(v.name, own.get(`${v.name}@${at.join("+")}`));
    }
    return { label, values };
  }

  countedTokens(tokens) {
    return runProgram(this.counted, [{ shape: [tokens.length], data: tokens }]).data.map(Boolean);
  }
}

// What is right: the largest logit is the label, or every number is within the tolerance.
function answersRight(loss, logits, label) {
  const each = label.data.length / logits.length;
  return logits.map((row, s) => {
    if (loss.classes) return row.indexOf(Math.max(...row)) === label.data[s];
    return row.every((x, i) => Math.abs(x - label.data[s * each + i]) <= loss.tolerance);
  });
}
