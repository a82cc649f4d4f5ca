"""All tests run on all cores at once; files that are named run in this process."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """As `-n auto --dist loadfile`: what a file prepares, and compiles, serves all of its tests."""
    is_all = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not hasattr(config, "workerinput")
    # Without pytest-xdist there is no such option; a number is the caller's own choice.
    if is_all and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses, config.option.dist = "auto", "loadfile"
