"""What mkdocstrings is to make of our docstrings: a reference is a link, and an example is shown as one."""

import re
from typing import Any

from griffe import Extension, Object


def linked(text: str) -> str:
    """Has `siitjax.room.module.name` lead to its place; one that leads nowhere ends the build, which is strict."""
    return re.sub(r"`(siitjax\.\w+\.\w+[\w.]*)`", r"[`\1`][\1]", text)


class Docstrings(Extension):
    """Changes each docstring before it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            # The reader knows the plural alone.
            words = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = linked(words)
