"""A circuit as an SVG, from the tokens at the bottom up to the logits: of model cards, and of pages.

Edges are drawn by what their swap changes in the causal model: true ones solid, the wider the more labels they change;
silent ones dotted; those outside the circuit only where they are asked for, and hidden until the page shows them.
"""

from html import escape

from siitjax.causal.case import Case
from siitjax.causal.ground_truth import edge_effects, role
from siitjax.model.nodes import LOGITS, Node

WIDE, HIGH = 112, 40
"""A node's box, in pixels."""
ACROSS, UP = 132, 96
"""From one node to the next, and from one row to the next."""
MARGIN = 16
LINE = 15
"""Letters of a box's second line, at most."""
STYLE = """
  .node rect { fill: #f4f4f4; stroke: #8a8a8a; }
  .node.used rect { fill: #d6ebf7; stroke: #0072b2; stroke-width: 1.6; }
  .node text { font: 600 12px system-ui, sans-serif; fill: #1a1a1a; text-anchor: middle; }
  .node text.held { font: 11px system-ui, sans-serif; fill: #333; }
  .edge path { fill: none; stroke: #0072b2; }
  .edge.silent path { stroke: #767676; stroke-dasharray: 2 4; }
  .edge.outside path { stroke: #bbb; }
"""


def draw(case: Case, *, all_edges: bool = False) -> str:
    """The circuit as an SVG element.

    Args:
        all_edges: draw the edges outside the circuit too.

    Example:
        >>> import siitjax
        >>> svg = draw(siitjax.find_case("left_greater"))
        >>> svg.count('class="node'), svg.count('class="edge true"'), svg.count('class="edge silent"')
        (7, 3, 1)
    """
    circuit = case.circuit
    places, width, height = _places(case)
    effects = {"->".join(edge): effect for edge, effect in edge_effects(case).items()}
    name = f"The circuit of {case.name}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(name)}">',
        f"<title>{escape(name)}</title>",
        f"<style>{STYLE}</style>",
        '<g class="edges">',
    ]
    for sender, reader in circuit.nodes.possible_edges:
        edge = f"{sender}->{reader}"
        kind = "outside" if edge not in effects else "true" if effects[edge] > 0 else "silent"
        if kind != "outside" or all_edges:
            parts.append(_edge(edge, kind, effects.get(edge, 0.0), places[sender], places[reader]))
    parts.append('</g><g class="nodes">')
    for node, place in places.items():
        held = _held(case, node)
        used = "used" if held else "unused"
        about = "the answer is read here" if node == LOGITS else role(case, node)
        parts.append(_box(str(node), used, held, about, place))
    return "".join([*parts, "</g></svg>"])


def _places(case: Case) -> tuple[dict[Node, tuple[float, float]], int, int]:
    """The middle of each node's box, and the size of the whole."""
    rows: list[list[Node]] = []
    for node in (*case.circuit.nodes.nodes, LOGITS):
        if rows and rows[-1][0].depth == node.depth:
            rows[-1].append(node)
        else:
            rows.append([node])
    width = 2 * MARGIN + ACROSS * max(map(len, rows))
    height = 2 * MARGIN + HIGH + UP * (len(rows) - 1)
    places = {}
    for i, row in enumerate(rows):
        for j, node in enumerate(row):
            places[node] = (width / 2 + ACROSS * (j - (len(row) - 1) / 2), height - MARGIN - HIGH / 2 - UP * i)
    return places, width, height


def _held(case: Case, node: Node) -> str:
    """What a node holds, in words."""
    if node == LOGITS:
        return case.variables[-1].name
    if node.layer is None:
        return "tokens"
    return ", ".join(v.name.rpartition(".")[2] for v in case.circuit.at(node))


def _edge(edge: str, kind: str, effect: float, sender: tuple[float, float], reader: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = sender, reader
    y, to_y = y - HIGH / 2, to_y + HIGH / 2
    bend = max((y - to_y) / 2, 12)
    # What passes a row of other nodes goes round its own way, so that edges of one column do not lie on one another.
    side = 0.32 * ACROSS * ((y - to_y) > UP) * (1 if to_x >= x else -1)
    path = f"M{x:.0f} {y:.0f}C{x + side:.0f} {y - bend:.0f} {to_x + side:.0f} {to_y + bend:.0f} {to_x:.0f} {to_y:.0f}"
    wide = 1.2 + 5 * effect if kind == "true" else 1.2
    words = {
        "true": f"a swap changes {100 * effect:.1f}% of the labels",
        "silent": "silent: no sample can reveal it",
        "outside": "outside the circuit: a swap should change nothing",
    }[kind]
    return (
        f'<g class="edge {kind}" data-edge="{edge}"><title>{escape(edge)}: {words}</title>'
        f'<path d="{path}" stroke-width="{wide:.1f}"/></g>'
    )


def _box(name: str, used: str, held: str, about: str, place: tuple[float, float]) -> str:
    x, y = place
    short = held if len(held) <= LINE else held[: LINE - 1] + "…"
    second = f'<text class="held" x="{x:.0f}" y="{y + 13:.0f}">{escape(short)}</text>' if held else ""
    return (
        f'<g class="node {used}" data-node="{name}"><title>{escape(name)}: {escape(about)}</title>'
        f'<rect x="{x - WIDE / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{WIDE}" height="{HIGH}" rx="6"/>'
        f'<text x="{x:.0f}" y="{y - 2 if held else y + 4:.0f}">{name}</text>{second}</g>'
    )
