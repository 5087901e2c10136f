"""RASP programs (Weiss et al. 2021), as tracr writes them (Lindner et al. 2023), made cases.

In comes a program, its vocabulary and the length of its strings; out goes a case like any other: the s-ops are its
variables, the program's graph says what each reads, its functions give the values, and each lives on the first head or
MLP that can compute it. No compiled weights are needed. `case.from_rasp` is the front door, `program` reads the
program, `values` finds what values an s-op can take, `compute` is how a variable is computed in jax, `placement` is
where it lives, `strings` draws, `proof` compares with tracr's own evaluator. The extra `rasp` brings tracr.
"""
