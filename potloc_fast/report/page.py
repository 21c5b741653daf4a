"""A report as one HTML file that needs nothing else: no network, no folder beside it."""

from __future__ import annotations

import base64
import gzip
import json
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from potloc_fast.errors import InputError
from potloc_fast.files import write_text
from potloc_fast.report.charts import STAGES, charts
from potloc_fast.report.data import Report

SCRIPTS = ("unpack", "recordings", "mending", "timeline", "charts", "page")  # of static/, in this order
_ROOM = resources.files("potloc_fast.report")


def write_report(path: str | Path, report: Report) -> None:
    """Write a report as an HTML file.

    Raises:
        InputError: the packages of the extra `report` are missing, or the file can't be written.
    """
    write_text(path, render(report))


def check_packages() -> None:
    """Refuse to begin where the packages of the extra `report` are missing.

    Raises:
        InputError: they are.
    """
    for name in ("jinja2", "plotly"):
        if find_spec(name) is None:
            raise InputError(f"report: expected the package {name}, found none: pip install 'potloc_fast[report]'")


def render(report: Report) -> str:
    """Give a report as HTML.

    Raises:
        InputError: the packages of the extra `report` are missing.
    """
    check_packages()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    room = Environment(
        loader=PackageLoader("potloc_fast.report"),
        autoescape=True,  # names and labels are data
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.filters["json"] = embed
    drawn = charts(report)
    return room.get_template("report.html").render(
        report=report,
        charts=drawn,
        drawn=[{"data": chart.data, "layout": chart.layout, "height": chart.height} for chart in drawn],
        stages=STAGES,
        style=_text("report.css"),
        scripts=[(name, _text(f"{name}.js")) for name in SCRIPTS],
        plotly=base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode(),
    )


def embed(value: Any) -> str:
    r"""Give a value as JSON that can stand in an element `script`: no character of it can end that.

    >>> print(embed("</script><!--"))
    "\u003c/script\u003e\u003c!--"
    """
    from markupsafe import Markup

    text = json.dumps(value)  # lone surrogates and line separators are escaped, too
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _text(name: str) -> str:
    return (_ROOM / "static" / name).read_text(encoding="utf-8")
