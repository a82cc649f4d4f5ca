"""Makes the reproduction suite importable as `reproductions`, wherever this package is installed.

The suite is no part of the package's interface and no package of its own where it is installed: a wheel
keeps it in the folder `ssnn_plugin/_suite`, a clone beside `ssnn_plugin`. The command `ssnn-plugin` begins
with this import, and so does a script that uses the suite; `dask worker --preload ssnn_plugin.suite` does it
for the workers of a sweep.

>>> import ssnn_plugin.suite
>>> from reproductions.config import Config
"""

from __future__ import annotations

import sys
from pathlib import Path

_INSTALLED = Path(__file__).parent / "_suite"
#: the folder that holds `reproductions`
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1]

if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))
