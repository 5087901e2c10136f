"""`python -m siitjax explore`: pages to look into models whose circuits are known."""

import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

from siitjax.base.command import Command, argument, flag
from siitjax.base.errors import UserError
from siitjax.base.files import make_folder, write_atomically
from siitjax.base.share import percent
from siitjax.causal import registry
from siitjax.io.explorer import page
from siitjax.io.hub_folder import check_free, new_folder
from siitjax.io.trained import Trained, load

INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Transformers whose circuits are known</title>
<style>
body {{ margin: 24px auto; max-width: 900px; padding: 0 16px; font: 16px/1.5 system-ui, sans-serif; }}
.scroll {{ overflow-x: auto; }} table {{ border-collapse: collapse; }}
th, td {{ padding: 4px 10px; border-bottom: 1px solid #d0d0d0; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) {{ text-align: left; }}
</style></head><body>
<h1>Transformers whose circuits are known</h1>
<p>Each page has a transformer, the causal model that it computes, and swaps of both. Figures are in %, on validation
pairs drawn after training.</p>
<div class="scroll"><table><thead><tr><th>model</th><th>tasks</th><th>layers</th><th>d_model</th><th>accuracy</th>
<th>IIA</th><th>changed IIA</th><th>SIIA</th></tr></thead><tbody>
{rows}
</tbody></table></div></body></html>
"""


@dataclass(frozen=True)
class Explore(Command):
    """Writes a page to look into a trained model: one self-contained file, which any browser opens without a network.

    One types two strings and swaps nodes, edges and positions; the transformer's answers and the causal model's stand
    side by side. With --all, OUT is a folder: a page of each shipped model, and an index.
    """

    model: str = argument("a shipped model (0+1 or left_greater), a .safetensors file, or a folder; with --all, OUT")
    out: str = argument("the page to write, such as page.html; it must not exist", default="")
    case: str = flag("", "where the model's case is, if not in cases/: package.module:CASE or path/to/file.py:CASE")
    pairs: int = flag(1_000, "fresh pairs on which swaps of one or two nodes, and of one edge, are measured", least=2)
    all: bool = flag(False, "write a page of every shipped model into the folder OUT")

    def run(self) -> int:
        if self.case:
            registry.find(self.case)
        if self.all:
            if self.out:
                raise UserError(f"--all takes one word, the folder OUT, but {self.model} {self.out} was given")
            return self._all(Path(self.model))
        if not self.out:
            raise UserError(f"OUT is missing: siitjax explore {self.model} page.html")
        out = Path(self.out)
        check_free(out, "a page")
        _write(load(self.model), out, self.pairs)
        return 0

    def _all(self, out: Path) -> int:
        shipped, at_nodes = registry.own_tasks().shipped, registry.AT_NODES
        # Of a model that holds at nodes alone, only where no other of its task is shipped.
        names = [name for name in shipped if at_nodes not in name or name.replace(at_nodes, "") not in shipped]
        with new_folder(out) as folder:
            rows = []
            for name in names:
                trained = load(name)
                _write(trained, folder / f"{name}.html", self.pairs)
                rows.append(_row(name, trained))
            (folder / "index.html").write_text(INDEX.format(rows="\n".join(rows)))
        print(f"{len(names)} pages and index.html are written to {out}")
        return 0


def _write(trained: Trained, out: Path, pairs: int) -> None:
    began = time.monotonic()
    try:
        make_folder(out.parent)  # before anything is measured for it
        text = page(trained, pairs)
        write_atomically(out, text)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); choose another OUT") from None
    print(f"{out}: {len(text) / 1e6:.2f} MB, {time.monotonic() - began:.0f} s", flush=True)


def _row(name: str, trained: Trained) -> str:
    """A model's line in the index."""
    config, found = trained.case.config, trained.metrics
    shares = ("accuracy", "iia", "changed_iia", "siia")
    figures = ["-"] * len(shares) if found is None else [percent(getattr(found, share)) for share in shares]
    cells = (trained.case.name.replace("+", ", "), config.n_layers, config.d_model, *figures)
    tail = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
    return f'<tr><td><a href="{escape(name)}.html">{escape(name)}</a></td>{tail}</tr>'
