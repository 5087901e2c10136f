"""ioi_full: `ioi` with the MLPs of GPT-2's width, 3,072, as InterpBench and MIB have it."""

from dataclasses import replace

from cases.interpbench import ioi

CASE = replace(ioi.CASE, name="ioi_full", d_mlp=3072)
