"""A circuit as an SVG, from the tokens at the bottom up to the logits: of model cards, and of pages.

Edges are drawn by what their swap changes in the causal model: true ones solid, the wider the more labels they change;
silent ones dotted; those outside the circuit only where they are asked for, and hidden until the page shows them.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from siitjax.causal.case import Case
from siitjax.causal.ground_truth import edge_effects, role
from siitjax.model.nodes import LOGITS, Node

WIDE, HIGH = 112, 40
"""A node's box, in pixels."""
ACROSS, UP = 132, 96
"""From one node to the next, and from one row to the next."""
MARGIN = 16
FARTHEST = 2.5
"""How far aside an edge is bent, in nodes."""
_T = np.linspace(0, 1, 41)[:, None]
BERNSTEIN = np.hstack([(1 - _T) ** 3, 3 * _T * (1 - _T) ** 2, 3 * _T**2 * (1 - _T), _T**3])
"""What a cubic Bézier curve's points weigh, at the places where it is looked at whether a box hides it."""
Point = tuple[float, float]
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
            # Those outside are hundreds, and hidden at first: they take the straight way.
            others = [place for node, place in places.items() if kind != "outside" and node not in (sender, reader)]
            curve = _curve(places[sender], places[reader], others, width)
            parts.append(_edge(edge, kind, effects.get(edge, 0.0), curve))
    parts.append('</g><g class="nodes">')
    for node, place in places.items():
        held = _held(case, node)
        used = "used" if held else "unused"
        about = "the answer is read here" if node == LOGITS else role(case, node)
        parts.append(_box(str(node), used, held, about, place))
    return "".join([*parts, "</g></svg>"])


def _places(case: Case) -> tuple[dict[Node, Point], int, int]:
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


def _curve(sender: Point, reader: Point, others: Sequence[Point], width: int) -> tuple[Point, ...]:
    """The points of an edge's Bézier curve, bent aside by as little as keeps it off the boxes of `others`, where that
    can be: behind a box it looks as if it ended there."""
    (x, y), (to_x, to_y) = (sender[0], sender[1] - HIGH / 2), (reader[0], reader[1] + HIGH / 2)
    rise = max((y - to_y) / 2, 12)
    toward = 1 if to_x >= x else -1

    def bent(out: float, into: float) -> tuple[Point, ...]:
        return (x, y), (x + out, y - rise), (to_x + into, to_y + rise), (to_x, to_y)

    def hidden(ends: tuple[float, float]) -> int:
        along = BERNSTEIN @ np.array(bent(*ends))
        apart = np.abs(along[:, None] - np.array(others).reshape(-1, 2)) < (WIDE / 2 + 3, HIGH / 2 + 3)
        return int(apart.all(-1).sum() + (np.abs(along[:, 0] - width / 2) > width / 2).sum())

    sides = [toward * sign * k * ACROSS / 8 for k in range(int(8 * FARTHEST) + 1) for sign in (1, -1)]
    ways = [way for side in sides for way in ((side, side), (side, 0.0), (0.0, side))]
    free = next((way for way in ways if not hidden(way)), None)
    return bent(*(free or min(ways, key=hidden)))


def _edge(edge: str, kind: str, effect: float, curve: Sequence[Point]) -> str:
    start, *rest = (f"{x:.0f} {y:.0f}" for x, y in curve)
    path = f"M{start}C{' '.join(rest)}"
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


def _box(name: str, used: str, held: str, about: str, place: Point) -> str:
    x, y = place
    short = held if len(held) <= LINE else held[: LINE - 1] + "…"
    second = f'<text class="held" x="{x:.0f}" y="{y + 13:.0f}">{escape(short)}</text>' if held else ""
    return (
        f'<g class="node {used}" data-node="{name}"><title>{escape(name)}: {escape(about)}</title>'
        f'<rect x="{x - WIDE / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{WIDE}" height="{HIGH}" rx="6"/>'
        f'<text x="{x:.0f}" y="{y - 2 if held else y + 4:.0f}">{name}</text>{second}</g>'
    )
