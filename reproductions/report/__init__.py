"""Recorded runs as one web page that needs no server and no network.

`charts` holds the charts and `listings` the tables; `page.html`, `page.css` and `page.js` are the page around
them, into which the records and the library that draws go, too.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ssnn_plugin.metrics import RULES

from .. import columns
from ..errors import SuiteError
from ..records import Record, atomic_write, read_by_path, versions
from ..tables import CERTAINTY, by_config
from .charts import all_charts, raster
from .listings import comparison, identity, published, runs

HERE = Path(__file__).parent


def write(folder: Path, output: Path) -> None:
    """Write the page of the records of a folder.

    Raises:
        SuiteError: there are no records, one cannot be read, or nothing can be written.
    """
    recorded = read_by_path(folder)
    if not recorded:
        raise SuiteError(f"{folder}: no records there; train with `run`")
    texts = {identity(run): path.read_text(encoding="utf-8") for path, run in recorded.items()}
    with atomic_write(output) as file:
        file.write(page(list(recorded.values()), texts))


def page(recorded: Sequence[Record], texts: dict[str, str]) -> str:
    """The page of some runs; `texts` are the records as they are on disk, by `listings.identity`."""
    datasets = sorted({run.dataset for run in recorded})
    drawn = {dataset: all_charts(recorded, dataset) for dataset in datasets}
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        {
            "name": dataset,
            "charts": list(drawn[dataset]),
            "comparison": comparison(recorded, dataset),
            "published": published(dataset),
            "runs": runs(recorded, dataset),
            "examples": {method: identity(group[0]) for method, group in by_config(recorded, dataset)},
        }
        for dataset in datasets
    ]
    return environment.get_template("page.html").render(
        sections=sections,
        count=len(recorded),
        versions=versions(),
        rules=RULES,
        rule=columns.RULE,
        columns=columns.COLUMNS,
        brief=columns.BRIEF,
        legend=columns.meanings(columns.BRIEF, columns.RULE),
        certainty=CERTAINTY,
        style=_inline((HERE / "page.css").read_text(encoding="utf-8")),
        script=_inline((HERE / "page.js").read_text(encoding="utf-8")),
        library=_inline(_library()),
        charts=_packed(drawn | {"raster": raster()}),
        records=_packed(texts),
    )


@cache
def _library() -> str:
    """The script that draws, as one file; it is put together anew in seconds."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _inline(text: str) -> str:
    """Text of a style or script element, which the text itself does not end."""
    return text.replace("</script", "<\\/script")


def _packed(content: dict[str, Any]) -> str:
    """JSON, compressed, in characters that a page can hold."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
