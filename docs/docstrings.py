"""Docstrings as Markdown: examples become code blocks, and shapes such as [batch, *] code."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
SHAPE = re.compile(r"(?<![\w`\])])\[((?:[\w*]+)(?:, [\w*]+)*)\](?![(\[`])")
CODE = re.compile(r"(```.*?```|``.*?``|`[^`]*`)", re.DOTALL)


def as_markdown(text: str) -> str:
    """A docstring with its examples fenced and its shapes marked, what is code already left alone.

    >>> as_markdown("times [batch, *], `x[0]`")
    'times `[batch, *]`, `x[0]`'
    >>> print(as_markdown("What.\\n\\n>>> 1 + 1\\n2"))
    What.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """
    text = EXAMPLE.sub(lambda block: f"{block[1]}```pycon\n{block[0]}\n{block[1]}```", text)
    parts = CODE.split(text)
    return "".join(part if n % 2 else SHAPE.sub(r"`[\1]`", part) for n, part in enumerate(parts))


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
