"""Docstrings as Markdown: examples become code blocks, shapes such as [batch, *] code, pages links."""

import re
from pathlib import Path
from typing import Any

import griffe
from markdown.extensions.toc import slugify

DOCS = Path(__file__).parent

EXAMPLE = re.compile(r"^( *)>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
SHAPE = re.compile(r"(?<![\w`\])])\[((?:[\w*]+)(?:, [\w*]+)*)\](?![(\[`])")
PAGE = re.compile(r"docs/([\w-]+)\.md")
CODE = re.compile(r"(```.*?```|``.*?``|`[^`]*`)", re.DOTALL)


def as_markdown(text: str) -> str:
    """A docstring with its examples fenced, shapes marked and pages linked; code stays as it is."""
    text = EXAMPLE.sub(lambda block: f"{block[1]}```pycon\n{block[0]}\n{block[1]}```", text)
    parts = CODE.split(text)
    return "".join(part if n % 2 else _marked(part) for n, part in enumerate(parts))


def _marked(text: str) -> str:
    return PAGE.sub(_link, SHAPE.sub(r"`[\1]`", text))


def _link(page: re.Match[str]) -> str:
    """To the first heading of the page."""
    title = (DOCS / f"{page[1]}.md").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    return f"[{title}][{slugify(title, '-')}]"


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
