"""How the documentation site is built: `sphinx-build -c docs . FOLDER`, without a network.

The source is the whole repository, so that a link between README, docs/ and benchmarks/results/ is the same path here
and in a clone.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.utils.math import latex2mathml

sys.path.insert(0, str(Path(__file__).parent))
import configuration_keys  # beside this file

if TYPE_CHECKING:
    from collections.abc import Callable

    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

project = "potloc_fast"
author = project
release = metadata.version(project)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "benchmarks/results/**.md"]
exclude_patterns = [".*", "build", "runs"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

smartquotes = False  # "--" is an option

html_theme = "furo"
html_title = project
html_additional_pages = {"index": "to_front.html"}
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["templates"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
default_role = "code"  # docstrings have single backticks
napoleon_google_docstring = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _command_line() -> str:
    command = [sys.executable, "-m", "typer", "potloc_fast.cli", "utils", "docs", "--name", "potloc-fast"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n## ", 1)[1]
    return re.sub(r"(?m)^Example: (.*)$", r"Example: `\1`", told)


# Pages, and what stands in them in place of the comment `<!-- generated -->`.
_GENERATED = {
    "docs/command_line": lambda: f"## {_command_line()}",
    "docs/configuration": configuration_keys.tables,
}


def _generate(app: Sphinx, page: str, source: list[str]) -> None:
    if page in _GENERATED:
        source[0] = source[0].replace("<!-- generated -->", _GENERATED[page]())


def _math(as_block: bool) -> tuple[Callable[[HTML5Translator, nodes.math | nodes.math_block], None], None]:
    """MathML, which browsers draw by themselves: other renderers fetch JavaScript, or need LaTeX."""

    def visit(writer: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
        formula = latex2mathml.tex2mathml(node.astext(), as_block=as_block)
        writer.body.append(f'<div class="formula">{formula}</div>' if as_block else formula)
        raise nodes.SkipNode

    return visit, None


def setup(app: Sphinx) -> None:
    """Take part in the build."""
    app.connect("source-read", _generate)
    app.add_html_math_renderer("mathml", _math(as_block=False), _math(as_block=True))
