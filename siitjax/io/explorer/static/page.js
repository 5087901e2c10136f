// The page: what is chosen, what both models make of it, and how it is shown.

const data = JSON.parse(document.getElementById("data").textContent);
const model = new Transformer(data.config, data.weights);
const circuit = new Circuit(data.circuit);
const byId = (id) => document.getElementById(id);
const chosen = { tasks: { base: 0, source: 0 }, base: [], source: [], nodes: new Set(), edges: new Set(), off: new Set() };
let shown = null;  // what was computed last

// ---- strings

const firstTask = data.vocabulary.length - data.tasks.length;
const begins = (task = 0) => (data.tasks.length ? [firstTask + task, data.bos] : [data.bos]);

function parsed(text, task) {
  const words = data.letters ? [...text.replace(/\s/g, "")] : text.trim().split(/\s+/).filter(Boolean);
  const known = data.vocabulary.slice(2, firstTask), start = begins(task);
  const wrong = words.find((word) => !known.includes(word));
  if (wrong !== undefined) throw new Error(`"${wrong}" is not a token; those are ${known.join(" ")}`);
  const most = data.n_ctx - start.length;
  if (words.length > most) throw new Error(`there are ${words.length} tokens; the model takes ${most} at most`);
  if (!words.length) throw new Error("write one token or more");
  return [...start, ...words.map((word) => data.vocabulary.indexOf(word))];
}

const padded = (tokens) => [...tokens, ...new Array(data.n_ctx - tokens.length).fill(data.pad)];
const spelled = (tokens) => tokens.slice(begins().length).map((t) => data.vocabulary[t]).join(data.letters ? "" : " ");

// ---- both models under what is chosen

function swapOf({ nodes, edges, off }) {
  const { readers, senders } = data.circuit;
  const whole = senders.map((sender) => nodes.has(sender));
  const single = readers.map((reader) => senders.map((sender) => edges.has(`${sender}->${reader}`)));
  return (reader, sender, position) => (whole[sender] || single[reader][sender]) && !off.has(position);
}

function runBoth(base, source, sees) {
  const there = { model: model.run(source), circuit: circuit.run(source) };
  const own = { model: model.run(base), circuit: circuit.run(base) };
  return { there, own, swapped: swappedRun(base, sees, there) };
}

function swappedRun(base, sees, there) {
  return {
    model: model.run(base, sees, there.model.written),
    circuit: circuit.run(base, sees, there.circuit.values),
  };
}

function compute() {
  const base = padded(chosen.base), source = padded(chosen.source);
  const found = runBoth(base, source, swapOf(chosen));
  const right = answersRight(data.loss, found.swapped.model.logits, found.swapped.circuit.label);
  const before = answersRight(data.loss, found.own.model.logits, found.own.circuit.label);
  shown = { ...found, base, source, right, before, counted: circuit.countedTokens(base) };
}

// Any swap on the pairs that the page carries; their own runs are kept.
const kept = data.pairs.map(() => null);
let asked = 0;

async function measureLive() {
  const mine = ++asked, sees = swapOf(chosen), count = [0, 0, 0, 0];
  byId("held").textContent = `Measuring this swap on ${data.pairs.length} fresh pairs …`;
  for (let i = 0; i < data.pairs.length; i++) {
    if (i % 5 === 0) await new Promise((go) => setTimeout(go, 0));
    if (mine !== asked) return;
    const [base, source] = data.pairs[i];
    kept[i] ??= {
      there: { model: model.run(source), circuit: circuit.run(source) },
      label: circuit.run(base).label.data, counted: circuit.countedTokens(base),
    };
    const swapped = swappedRun(base, sees, kept[i].there), label = swapped.circuit.label.data;
    const right = answersRight(data.loss, swapped.model.logits, swapped.circuit.label), each = label.length / base.length;
    kept[i].counted.forEach((counts, s) => {
      if (!counts) return;
      const changed = label.slice(s * each, (s + 1) * each).some((x, k) => x !== kept[i].label[s * each + k]);
      count[0] += right[s]; count[1] += 1; count[2] += changed && right[s]; count[3] += changed;
    });
  }
  showHeld(count, `on ${data.pairs.length} fresh pairs, computed in this page`);
}

const percent = (right, of) => (of ? `${(Math.floor(1e4 * right / of) / 100).toString()}%` : "-");

function showHeld([right, of, changedRight, changed], where) {
  const rest = changed ? `, ${percent(changedRight, changed)} of the ${changed} whose label it changes` : "; it changes no label";
  byId("held").textContent = `This swap ${where}: ${percent(right, of)} of ${of} tokens right${rest}.`;
  byId("held").dataset.right = right;
  byId("held").dataset.of = of;
}

// ---- showing

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const named = (label) =>
  (data.loss.classes ? data.className(label) : Number(label).toFixed(2).replace(/^-(0\.00)$/, "$1"));

// A class is a token's name where outputs are the vocabulary, else its number.
data.className = (label) =>
  (data.config.d_vocab_out === firstTask && data.vocabulary[label] !== undefined ? data.vocabulary[label] : `${label}`);

function answer(row) {
  return data.loss.classes ? named(row.indexOf(Math.max(...row))) : row.map(named).join(" ");
}

function labelAt(label, s, seq) {
  const each = label.data.length / seq;
  return label.data.slice(s * each, (s + 1) * each).map(named).join(" ");
}

function showAnswers() {
  const { base, source, own, swapped, right, before, counted } = shown, n = chosen.base.length, at = [...Array(n).keys()];
  const position = (s) => make("button", {
    type: "button", "aria-pressed": `${!chosen.off.has(s)}`, "data-position": s,
    "aria-label": `position ${s}, ${data.vocabulary[base[s]]}: swapped here`,
    onclick: () => { chosen.off.has(s) ? chosen.off.delete(s) : chosen.off.add(s); update(); byId("answers").querySelector(`[data-position="${s}"]`).focus(); },
  }, data.vocabulary[base[s]].replace(/:$/, "").slice(0, 8));
  const line = (name, cell, classes = () => "") => make("tr", {}, make("th", { scope: "row" }, name),
    ...at.map((s) => make("td", { class: `${counted[s] ? "" : "quiet "}${classes(s)}` }, cell(s))));
  const changed = (s) => labelAt(swapped.circuit.label, s, base.length) !== labelAt(own.circuit.label, s, base.length);
  byId("answers").replaceChildren(
    make("thead", {}, make("tr", {}, make("th", { scope: "row" }, "base"), ...at.map((s) => make("th", { scope: "col" }, position(s))))),
    make("tbody", {},
      line("source", (s) => data.vocabulary[source[s]].replace(/:$/, "").slice(0, 8)),
      line("causal model, base", (s) => labelAt(own.circuit.label, s, base.length)),
      line("transformer, base", (s) => answer(own.model.logits[s]), (s) => (counted[s] && !before[s] ? "wrong" : "")),
      line("causal model, swapped", (s) => labelAt(swapped.circuit.label, s, base.length), (s) => (changed(s) ? "changed" : "")),
      line("transformer, swapped", (s) => answer(swapped.model.logits[s]),
        (s) => (counted[s] && !right[s] ? "wrong" : changed(s) ? "changed" : "")),
      line("agree", (s) => (counted[s] ? `${right[s] ? "✓" : "✗"}${changed(s) ? " Δ" : ""}` : "·")),
    ),
  );
}

function showSwap() {
  const words = [...chosen.nodes, ...chosen.edges];
  const where = chosen.off.size ? `, not at position${chosen.off.size > 1 ? "s" : ""} ${[...chosen.off].sort((a, b) => a - b).join(", ")}` : "";
  byId("swap").textContent = words.length ? `Swapped: ${words.join(", ")}${where}.` : "Nothing is swapped yet.";
  byId("held").textContent = "";
  if (!words.length) { asked++; return; }
  const names = [words.join(", "), [...words].reverse().join(", ")];
  const measured = names.map((name) => data.measured.swaps[name]).find(Boolean);
  if (measured && !chosen.off.size) { asked++; showHeld(measured, `on ${data.measured.pairs} fresh pairs, measured when this page was written`); }
  else measureLive();
}

function showVariables() {
  const { own, there, swapped, base } = shown, n = chosen.base.length, at = [...Array(n).keys()];
  const text = (value, s) => {
    const each = value.data.length / base.length, part = value.data.slice(s * each, (s + 1) * each);
    return part.map((x) => (Number.isInteger(x) ? `${x}` : x.toFixed(2))).join(" ");
  };
  const rows = [];
  for (const variable of data.circuit.variables) {
    if (!variable.nodes.length && !variable.label) continue;
    const place = variable.nodes.join("+") || "logits";
    const lines = [["base", own], ["source", there], ["swapped", swapped]];
    lines.forEach(([which, run], i) => {
      const value = run.circuit.values.get(variable.name), mine = own.circuit.values.get(variable.name);
      // Of a node that is swapped, what its readers see.
      const taken = (s) => which === "swapped" && variable.nodes.length && !chosen.off.has(s) &&
        variable.nodes.every((node) => chosen.nodes.has(node));
      const seen = (s) => text(taken(s) ? there.circuit.values.get(variable.name) : value, s);
      const head = i ? "" : `${variable.name} (${place})`;
      rows.push(make("tr", {}, make("th", { scope: "row" }, head), make("td", {}, which),
        ...at.map((s) => make("td", { class: which === "swapped" && seen(s) !== text(mine, s) ? "changed" : "" }, seen(s)))));
    });
  }
  byId("variables").replaceChildren(make("tbody", {}, ...rows));
}

function heat(canvas, rows, scale) {
  canvas.width = Math.max(...rows.map((row) => row.length), 1);
  canvas.height = rows.length;
  const context = canvas.getContext("2d");
  rows.forEach((row, y) => row.forEach((x, i) => {
    const dark = Math.min(Math.max(x / scale, 0), 1), level = (to) => Math.round(255 + (to - 255) * dark);
    context.fillStyle = `rgb(${level(0)}, ${level(60)}, ${level(110)})`;
    context.fillRect(i, y, 1, 1);
  }));
}

function showAttention() {
  const n = chosen.base.length, heads = data.circuit.senders.filter((name) => name.includes("H"));
  byId("attention").replaceChildren(...heads.map((name, i) => {
    const pictures = [shown.own, shown.swapped].map((run, k) => {
      const canvas = make("canvas", { role: "img", "aria-label": `${name}, ${k ? "swapped" : "base"} run` });
      heat(canvas, run.model.patterns[i].slice(0, n).map((row) => [...row.slice(0, n), ...new Array(Math.max(0, n - row.length)).fill(0)]), 1);
      return canvas;
    });
    const used = data.roles[name].startsWith("holds");
    return make("figure", { class: used ? "used" : "" }, ...pictures, make("figcaption", {}, name));
  }));
}

function showNeurons() {
  if (!data.neurons) return;
  byId("neurons-section").hidden = false;
  data.neurons.loss.forEach((layer, i) => {
    const canvas = make("canvas", { role: "img", "aria-label": `neurons of MLP${i} by task` });
    const rows = data.neurons.tasks.map((_, task) => layer.map((neuron) => neuron[task]));
    heat(canvas, rows, 0.5);
    canvas.style.height = `${16 * rows.length}px`;
    byId("neurons").append(make("p", {}, `MLP${i}: ${data.neurons.tasks.join(", ")} (from top)`), canvas);
  });
}

function markCircuit() {
  const task = data.tasks.length ? chosen.tasks.base : null;
  for (const group of document.querySelectorAll("#drawing [data-node]")) {
    const name = group.dataset.node, of = data.tasksOf[name];
    group.classList.toggle("swapped", chosen.nodes.has(name));
    group.classList.toggle("idle", task !== null && of !== undefined && of.length > 0 && !of.includes(task));
    if (group.hasAttribute("aria-pressed")) group.setAttribute("aria-pressed", `${chosen.nodes.has(name)}`);
  }
  for (const group of document.querySelectorAll("#drawing [data-edge]")) {
    group.classList.toggle("swapped", chosen.edges.has(group.dataset.edge));
    group.setAttribute("aria-pressed", `${chosen.edges.has(group.dataset.edge)}`);
  }
}

function update() {
  compute();
  showAnswers();
  showSwap();
  showVariables();
  showAttention();
  markCircuit();
}

function read() {
  try {
    const of = (which) => parsed(byId(which).value, chosen.tasks[which]), base = of("base"), source = of("source");
    if (base.length !== source.length) {
      throw new Error(`the base has ${base.length - begins().length} tokens, the source ${source.length - begins().length}; make them equally long`);
    }
    Object.assign(chosen, { base, source });
    byId("error").textContent = "";
    update();
  } catch (error) {
    byId("error").textContent = error.message;
  }
}

function choose(tokens, other) {
  if (data.tasks.length) chosen.tasks = { base: tokens[0] - firstTask, source: other[0] - firstTask };
  const end = (list) => { const last = list.findLastIndex((t) => t !== data.pad); return list.slice(0, last + 1); };
  const n = Math.max(end(tokens).length, end(other).length);
  byId("base").value = spelled(tokens.slice(0, n));
  byId("source").value = spelled(other.slice(0, n));
  showTasks();
  read();
}

function showTasks() {
  for (const which of data.tasks.length ? ["base", "source"] : []) {
    const select = byId(`${which}-task`);
    select.hidden = false;
    if (!select.options.length) {
      select.append(...data.tasks.map((task, i) => make("option", { value: i }, task)));
      select.addEventListener("change", () => { chosen.tasks[which] = +select.value; read(); });
    }
    select.value = chosen.tasks[which];
  }
}

function pressable(group, press, words) {
  group.setAttribute("tabindex", "0");
  group.setAttribute("role", "button");
  group.setAttribute("aria-pressed", "false");
  group.setAttribute("aria-label", words);
  group.addEventListener("click", press);
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); press(); }
  });
}

function toggle(set, name) {
  set.has(name) ? set.delete(name) : set.add(name);
  update();
}

function begin() {
  byId("name").textContent = data.name;
  const c = data.config;
  byId("about").textContent = `A transformer of ${plural(c.n_layers, "layer")} of ${plural(c.n_heads, "head")}, d_model ${c.d_model}, and the causal model that it was trained to compute.`;
  byId("tokens-known").textContent = `Tokens: ${data.vocabulary.slice(2, firstTask).join(" ")}; ${data.n_ctx - begins().length} at most. ` +
    (c.causal ? "Shorter strings are filled up with PAD." : "Each position sees the whole string, and the model knows full strings alone.");
  document.querySelector("#drawing svg").removeAttribute("role");
  for (const group of document.querySelectorAll("#drawing [data-node]")) {
    const name = group.dataset.node;
    if (name === "logits") { group.classList.add("fixed"); continue; }
    pressable(group, () => toggle(chosen.nodes, name), `${name}: ${data.roles[name]}`);
  }
  for (const group of document.querySelectorAll("#drawing [data-edge]")) {
    const hit = group.querySelector("path").cloneNode();
    hit.classList.add("hit");
    group.append(hit);
    pressable(group, () => toggle(chosen.edges, group.dataset.edge), group.querySelector("title").textContent);
  }
  for (const example of data.examples) {
    byId("examples").append(make("button", { type: "button", onclick: () => choose(example.base, example.source) }, example.variable));
  }
  for (const id of ["base", "source"]) byId(id).addEventListener("input", read);
  byId("outside").addEventListener("change", (event) => byId("drawing").classList.toggle("all", event.target.checked));
  byId("clear").addEventListener("click", () => { for (const set of [chosen.nodes, chosen.edges, chosen.off]) set.clear(); update(); });
  byId("promise").textContent = `On ${data.measured.pairs} fresh pairs this model ${data.measured.holds}. In % of tokens, in brackets of those whose label the swap changes:`;
  byId("kinds").append(
    make("thead", {}, make("tr", {}, ...["swap", "all of the kind", "the worst of them"].map((w) => make("th", { scope: "col" }, w)))),
    make("tbody", {}, ...data.kinds.map((k) => make("tr", {}, make("th", { scope: "row" }, k.swap), make("td", {}, k.mean), make("td", {}, k.worst)))),
  );
  showNeurons();
  choose(data.examples[0].base, data.examples[0].source);
}

begin();
