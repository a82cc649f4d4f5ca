"""The reproduction suite as a command: `ssnn-plugin --help`, or `python -m ssnn_plugin --help`."""

from __future__ import annotations

import importlib
import sys

from . import suite


def main() -> None:
    """Run the suite's command line.

    It is found by its name: the package does not know the suite.
    """
    try:
        command_line = importlib.import_module("reproductions.__main__")
    except ModuleNotFoundError as error:
        if error.name == "reproductions":
            sys.exit(f"ssnn-plugin: there is no suite in {suite.FOLDER}")
        sys.exit(f'ssnn-plugin: the suite needs {error.name}: pip install "ssnn-plugin[repro]"')
    command_line.main()


if __name__ == "__main__":
    main()
