"""The documentation site builds without a warning, and its links lead somewhere."""

import importlib
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import ssnn_plugin

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow
NAMES = "decode encode functional losses metrics nir nn norse online rules snntorch surrogate testing"
MODULES = [f"ssnn_plugin.{name}" for name in NAMES.split()]


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.resolve(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_links_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                broken.append(f"{path}: {link}")
            elif parts.fragment and target in pages:
                anchor = unquote(parts.fragment)
                if anchor not in pages[target].anchors and not anchor.startswith("__"):
                    broken.append(f"{path}: {link}")
    assert not broken


def test_pages_load_nothing_from_elsewhere(pages):
    for path, page in pages.items():
        text = path.read_text(encoding="utf-8")
        loaded = [link for link in page.links if urlsplit(link).netloc and f'src="{link}"' in text]
        assert not loaded, path


def test_the_reference_has_every_public_name(pages):
    anchors = set().union(*(page.anchors for page in pages.values()))
    for module in (ssnn_plugin, *map(importlib.import_module, MODULES)):
        for name in _public_names(module):
            assert f"{module.__name__}.{name}" in anchors, f"{module.__name__}.{name} is on no page"


def _public_names(module):
    """Those that it says it has, else those that are defined in it."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)]
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return [name for name, value in own.items() if getattr(value, "__module__", None) == module.__name__]


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_the_screen(site, pages, open_page, width):
    assert len(pages) > 20
    for path in pages:
        page = open_page(path, width)
        page.locator("article").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.relative_to(site)


def test_formulas_are_there(site):
    text = (site / "formulas" / "index.html").read_text(encoding="utf-8")
    assert text.count("<math") > 100
    assert "arithmatex" not in text
