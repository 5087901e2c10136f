"""tracr's compiled transformers in NumPy, run with the values of some s-ops taken from another string."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tracr.compiler import basis_inference, craft_graph_to_model, expr_to_craft_graph, rasp_to_graph
from tracr.craft import bases, transformers, vectorspace_fns
from tracr.rasp import rasp

BOS = "compiler_bos"


@dataclass
class Compiled:
    """What tracr made of a program.

    Attributes:
        labels: of the residual stream's dimensions, "hist_1:3" for the value 3 of an s-op.
        blocks: of each attention layer and MLP, in turn, its matrices from the residual stream to itself: QK and OV of
            each head, or both of an MLP.
        scale: what the attention scores of each layer are divided by.
        output: what the labels of the program's output begin with.
    """

    labels: list[str]
    blocks: list[tuple[str, list[tuple[np.ndarray, np.ndarray]]]]
    output: str
    scale: float = 1.0

    @property
    def layers(self) -> int:
        """How many layers of attention and MLP there are."""
        count, last = 0, "mlp"
        for kind, _ in self.blocks:
            count += kind == "attn" or last == "mlp"
            last = kind
        return count

    def embed(self, strings: Sequence[Sequence[Any]]) -> np.ndarray:
        """The residual stream of strings of the same length, BOS before them."""
        found = np.zeros((len(strings), len(strings[0]) + 1, len(self.labels)))
        found[..., self.labels.index("one")] = 1 if "one" in self.labels else 0
        found[:, 0, self.labels.index(f"tokens:{BOS}")] = 1
        for i, string in enumerate(strings):
            for j, token in enumerate(string):
                found[i, j + 1, self.labels.index(f"tokens:{token}")] = 1
                found[i, j + 1, self.labels.index(f"indices:{j}")] = 1
        return found

    def run(
        self, stream: np.ndarray, *, causal: bool = False, patch: tuple[list[int], list[np.ndarray]] | None = None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """The last residual stream, and what each block wrote.

        Args:
            patch: dimensions, and what each block of another run wrote, which is taken for these.
        """
        wrote = []
        seq = stream.shape[1]
        later = np.triu(np.full((seq, seq), -np.inf), 1) if causal else np.zeros((seq, seq))
        for i, (kind, parts) in enumerate(self.blocks):
            out = np.zeros_like(stream)
            for one, other in parts:
                if kind == "mlp":
                    out += np.maximum(stream @ one, 0) @ other
                else:
                    scores = stream @ one @ stream.transpose(0, 2, 1) / self.scale + later
                    weights = np.exp(scores - scores.max(-1, keepdims=True))
                    out += weights / weights.sum(-1, keepdims=True) @ (stream @ other)
            if patch is not None:
                out[..., patch[0]] = patch[1][i][..., patch[0]]
            wrote.append(out)
            stream = stream + out
        return stream, wrote

    def dimensions(self, label: str) -> list[int]:
        """Those of an s-op, by its label in tracr."""
        return [i for i, each in enumerate(self.labels) if each == label or each.startswith(f"{label}:")]

    def read(self, stream: np.ndarray, values: Sequence[Any] | None) -> np.ndarray:
        """The program's output behind BOS: numbers, or which of `values` it is, their count for none."""
        if values is None:
            return stream[:, 1:, self.labels.index(self.output)]
        each = [stream[:, 1:, self.labels.index(f"{self.output}:{value}")] for value in values]
        weights = np.stack(each, -1)
        return np.where(weights.max(-1) > 0.05, (weights > weights.max(-1, keepdims=True) - 1e-3).argmax(-1), len(each))


def compile_program(program: rasp.SOp, vocab: Collection[Any], max_seq_len: int) -> Compiled:
    """tracr's own compiler up to the weights, which its last stage hands to Haiku."""
    extracted = rasp_to_graph.extract_rasp_graph(program)
    graph = extracted.graph
    basis_inference.infer_bases(graph, extracted.sink, set(vocab), max_seq_len)
    bos = bases.BasisDirection("tokens", BOS)
    expr_to_craft_graph.add_craft_components_to_rasp_graph(graph, bos_dir=bos)
    model = craft_graph_to_model.craft_graph_to_model(graph, extracted.sources)
    own = [*({"tokens": value} for value in (*vocab, BOS)), *({"indices": i} for i in range(max_seq_len))]
    directions = [bases.BasisDirection(name, value) for pair in own for name, value in pair.items()]
    output = bases.VectorSpaceWithBasis(extracted.sink["OUTPUT_BASIS"])
    space = bases.join_vector_spaces(model.residual_space, bases.VectorSpaceWithBasis(directions), output)
    into = lambda part: vectorspace_fns.project(space, part).matrix
    blocks = []
    for block in model.blocks:
        if isinstance(block, transformers.MLP):
            pair = (into(block.fst.input_space) @ block.fst.matrix, block.snd.matrix @ into(block.snd.output_space).T)
            blocks.append(("mlp", [pair]))
            continue
        heads = []
        for each in block.as_multi().heads():
            qk = into(each.w_qk.left_space) @ each.w_qk.matrix @ into(each.w_qk.right_space).T
            heads.append((qk, into(each.w_ov.input_space) @ each.w_ov.matrix @ into(each.w_ov.output_space).T))
        blocks.append(("attn", heads))
    return Compiled([str(direction) for direction in space.basis], blocks, program.label)
