"""The commands: `siitjax train`, `evaluate`, `export` and `ship`, a module each, listed in `main`.

In come words of a command line; out go text and an exit code.
"""
