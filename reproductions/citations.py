"""What to cite: the entries of `references.bib`, by the names of methods."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REFERENCES = Path(__file__).parent / "references.bib"
SUITE = "ssnn_plugin"
ENTRY = re.compile(r"^@\w+\{(?P<key>[\w-]+),\n.*?^\}\n", re.DOTALL | re.MULTILINE)
METHODS = re.compile(r"^  methods = \{(.*?)\},\n", re.MULTILINE)


@dataclass(frozen=True)
class Reference:
    """A work as BibTeX, and the beginnings of the names of the methods that follow it."""

    key: str
    text: str
    methods: tuple[str, ...]


@cache
def references() -> tuple[Reference, ...]:
    """All works, that of the suite first."""
    found = []
    for entry in ENTRY.finditer(REFERENCES.read_text(encoding="utf-8")):
        methods = METHODS.search(entry[0])
        names = tuple(methods[1].split()) if methods else ()
        found.append(Reference(entry["key"], METHODS.sub("", entry[0]), names))
    return tuple(found)


def beginnings(method: str) -> list[str]:
    """What a method's name begins with, word by word, the longest first.

    >>> beginnings("s4nn-every-bin")
    ['s4nn-every-bin', 's4nn-every', 's4nn']
    """
    words = method.split("-")
    return ["-".join(words[:count]) for count in range(len(words), 0, -1)]


def works(method: str) -> list[Reference]:
    """The works that a method follows, by the longest beginning of its name that any work has; or none.

    >>> [work.key for work in works("s4nn-tuned")], works("my-own")
    (['kheradpisheh2020temporal'], [])
    """
    for name in beginnings(method):
        if found := [work for work in references() if name in work.methods]:
            return found
    return []


def bibliography(methods: list[str]) -> str:
    """BibTeX of the suite and of the works that methods follow, each once; and which methods follow none."""
    followed = {method: works(method) for method in methods}
    keys = {SUITE} | {work.key for found in followed.values() for work in found}
    parts = [work.text for work in references() if work.key in keys]
    own = [method for method, found in followed.items() if not found]
    if own:
        parts.insert(0, f"% no other work is known for: {', '.join(own)}\n")
    return "\n".join(parts)


def command(method: str) -> str:
    r"""LaTeX that cites the works that a method follows; nothing, if none is known.

    >>> command("s4nn-tuned"), command("my-own")
    ('\\cite{kheradpisheh2020temporal}', '')
    """
    keys = ",".join(work.key for work in works(method))
    return rf"\cite{{{keys}}}" if keys else ""
