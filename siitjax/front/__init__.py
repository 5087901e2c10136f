"""What a notebook or a script calls: `siitjax.train`, `sweep`, `evaluate`, `load`, `register`.

In come a case, or its name, and what is to differ from a recipe; out come a `Run`, rows, an `Evaluation`. Everything
happens in this process. `siitjax/__init__.py` lists the names, and those of other rooms that a task's file needs.
"""
