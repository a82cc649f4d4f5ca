"""Formulas become MathML when the site is built, so that pages need no script and nothing from elsewhere."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def _mathml(match: re.Match[str]) -> str:
    tag, bracket, formula = match.groups()
    display = "block" if bracket == "[" else "inline"
    return f'<{tag} class="formula">{convert(html.unescape(formula), display=display)}</{tag}>'


def on_page_content(content: str, **kwargs: Any) -> str:
    return FORMULA.sub(_mathml, content)
