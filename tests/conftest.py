import functools
import shutil
import sys

import pytest
import torch

from reproductions import __main__ as cli
from reproductions import datasets, records
from reproductions.errors import run_command_line


def pytest_collection_modifyitems(items):
    """The test of `torch.compile` that every subclass of the contract inherits is slow."""
    for item in items:
        if item.name == "test_compiles":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Also of the processes that a test starts: with many small operations threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def set_threads():
    """For a test that asks for more threads than one."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cheap_runs():
    """For tiny runs: the digits are parsed once, and versions and commit are looked up once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.OF_ONE_FORM, "digits", functools.cache(datasets.OF_ONE_FORM["digits"]))
        for name in ("commit", "versions"):
            patch.setattr(records, name, functools.cache(getattr(records, name)))
        assert datasets.load("digits", "train") is datasets.load("digits", "train")
        yield


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the command line; return exit code, standard output and standard error."""

    def run(*arguments, columns="200"):
        monkeypatch.setattr(sys, "argv", ["reproductions", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit) as stop:
            run_command_line(cli.app)
        return stop.value.code or 0, *capsys.readouterr()

    return run


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    """A real browser; what needs one is left out where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a file at a width; whatever goes wrong on the page, or leaves it, fails the test."""
    wrong, contexts = [], []

    def open_(file, width=1280, anchor=""):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        contexts[-1].set_default_timeout(90_000)
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "blob:", "data:")) else wrong.append(request.url)
            ),
        )
        page.goto(f"{file.as_uri()}{anchor}")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []
