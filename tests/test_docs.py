"""The documentation: the site builds, its links lead somewhere, and what it tells people to type is what there is."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
import typer.main
from markdown_it import MarkdownIt

import potloc_fast
from potloc_fast.cli import app
from potloc_fast.config import load_config
from potloc_fast.config.load import _keys, preset_names
from potloc_fast.config.schema import Config
from potloc_fast.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
LEAST_LETTERS = 20  # of a message
SHOWN = 5  # results of a search that people read
MAKEFILE = (ROOT / "Makefile").read_text()
KEYS = _keys(Config)
COMMANDS = typer.main.get_command(app).commands


class Links(HTMLParser):
    """What a page links to, and the anchors in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors.add(values.get("id") or "")
        self.targets += [values[name] or "" for name in ("href", "src") if name in values]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as it is built; a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    # From elsewhere: in the clone, Python would take up the package that is not built.
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", str(ROOT / "docs"), str(ROOT), str(out)],
        cwd=out,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return out


def test_links_lead_to_pages_and_places(site: Path) -> None:
    pages = {page: Links(page) for page in sorted(site.rglob("*.html"))}
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            url = urlsplit(target)
            if url.scheme:
                assert url.scheme in ("https", "data", "mailto"), target
                continue
            where = (page.parent / unquote(url.path)).resolve() if url.path else page
            if not where.is_file() or (where in pages and unquote(url.fragment) not in pages[where].anchors | {""}):
                broken.append(f"{page.relative_to(site)}: {target}")
    assert len(pages) > 20
    assert not broken, broken


def test_pages_fetch_nothing(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.findall(r"""<(?:script|img|link)[^>]*(?:src|href)=["']?(?:https?:)?//""", page.read_text()), page


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("how to label", "docs/labelling.html"),
        ("which preset", "docs/presets.html"),
        ("topk_ratio", "docs/configuration.html#loss-topk-ratio"),
        ("nothing detected", "docs/questions.html#nothing-detected"),
        ("resume", "docs/training.html"),
        ("local_attention", "docs/operators.html#potloc_fast.ops.local_attention"),
    ],
)
def test_search_finds(driver: Any, site: Path, words: str, page: str) -> None:
    driver.get(f"{(site / 'search.html').as_uri()}?q={quote(words)}")
    deadline = time.monotonic() + 30
    while "matching the search query" not in driver.find_element("id", "search-results").text:
        assert time.monotonic() < deadline, driver.find_element("id", "search-results").text
        time.sleep(0.1)
    found = [link.get_attribute("href") for link in driver.find_elements("css selector", "#search-results li a")]
    driver.get_log("browser")  # from a disk no excerpts are fetched, which Chromium complains of
    assert (site / page).as_uri().replace("%23", "#") in found[:SHOWN]


def test_every_key_has_its_place(site: Path) -> None:
    html = (site / "docs" / "configuration.html").read_text()
    for key in ("loss.topk_ratio", "data.windows.stride_sec", "train.epochs", "detect.nms.sigma", "data.recordings"):
        assert f'<span class="pre">{key}</span></code>' in html
    assert "<code" in html.split("default:", 1)[1][:200]


def code(page: Path) -> Iterator[tuple[str, str]]:
    """The code on a page: the language of a block, or "inline", and its text."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            yield token.info.strip(), token.content
        for child in token.children or ():
            if child.type == "code_inline":
                yield "inline", child.content


def commands(page: Path, program: str) -> Iterator[tuple[str, list[str]]]:
    """What a page tells people to type after the name of a program: where it stands, and the words."""
    for language, text in code(page):
        if language in ("", "inline", "sh", "console"):
            for line in re.split(r"\n|&&|;|\|(?!\w)", re.sub(r"\\\n\s*", "", text)):
                found = re.search(rf"(?:^|\s)(?:{program})(?: (?P<rest>.*))?$", line)
                if found:
                    yield language, shlex.split(found["rest"] or "", comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_merge_is_left_half_done(page: Path) -> None:
    assert not re.findall(r"(?m)^(?:<{7}|={7}|>{7}).*", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_command_lines_are_understood(page: Path) -> None:
    for language, words in commands(page, "potloc-fast|-m potloc_fast"):
        if not words or words[0].startswith("-"):
            continue
        assert words[0] in COMMANDS, words
        command = COMMANDS[words[0]]
        if language == "inline":  # a mention, perhaps without its arguments
            known = {option for param in command.params for option in param.opts}
            assert {word for word in words if word.startswith("--")} <= known, words
            continue
        given = command.make_context("potloc-fast", words[1:]).params  # ends with an error where parsing fails
        if "overrides" in given and given["config"] in preset_names():
            load_config(given["config"], given["overrides"] or ())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_keys_are_known(page: Path) -> None:
    for language, text in code(page):
        key = re.fullmatch(rf"((?:{'|'.join(Config.model_fields)})\.[a-z_.]+)(?:=\S*)?", text)
        if language == "inline" and key and not key[1].endswith((".py", ".yaml", ".json")):
            assert any(f"{known}.".startswith(f"{key[1]}.") for known in KEYS), text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_developers_type_is_there(page: Path) -> None:
    for _, words in commands(page, "python -m"):
        ours = words[0].split(".")[0] in ("benchmarks", "tests")
        assert not ours or importlib.util.find_spec(words[0]), words
    for _, words in commands(page, "make"):
        targets = [word for word in words if word.islower() and "=" not in word and word[0] != "-"]
        assert all(re.search(rf"(?m)^{target}:", MAKEFILE) for target in targets), words
    for _, words in commands(page, "pytest"):
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_is_what_there_is(page: Path) -> None:
    """Examples with prompts are run. Of the others the names and keywords of this package are looked up."""
    for language, text in code(page):
        if language == "python" and ">>> " in text:
            example = doctest.DocTestParser().get_doctest(text, {}, page.name, None, 0)
            assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed == 0
        elif language == "python":
            look_up(ast.parse(text))


def messages() -> list[re.Pattern[str]]:
    """Every text of the package that is long enough to be told from others; what is filled in may be anything."""
    found = []
    for path in Path(potloc_fast.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            if sum(map(len, texts)) >= LEAST_LETTERS:
                found.append(re.compile(".*".join(map(re.escape, texts))))
    return found


def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "docs" / "walkthrough.ipynb").read_text())["cells"]
    told = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    told += "\nassert result.mean > 70, result.mean\n"
    done = subprocess.run(
        [sys.executable, "-c", told],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "report.html").stat().st_size > 100_000


def test_questions_quote_what_is_printed() -> None:
    known = messages()
    for override in ("data.grid.fsp=2", "train.epochs=many"):  # sentences that are put together of short parts
        with pytest.raises(InputError) as refused:
            load_config("own", [override])
        known.append(re.compile(re.escape(str(refused.value))))
    quoted = [text.strip() for language, text in code(ROOT / "docs" / "questions.md") if language == "text"]
    unknown = [text for text in quoted if not any(message.search(text) for message in known)]
    assert len(quoted) > 20
    assert not unknown, unknown


def look_up(tree: ast.Module) -> None:
    known: dict[str, object] = {}

    def value(node: ast.expr) -> object:
        if isinstance(node, ast.Name):
            return known.get(node.id)
        owner = value(node.value) if isinstance(node, ast.Attribute) else None
        return None if owner is None else getattr(owner, node.attr)

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {name.name: importlib.import_module(name.name) for name in node.names if "potloc" in name.name}
        elif isinstance(node, ast.ImportFrom) and "potloc" in (node.module or ""):
            module = importlib.import_module(node.module or "")
            known |= {name.asname or name.name: getattr(module, name.name) for name in node.names}
    for node in ast.walk(tree):
        called = value(node.func) if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and callable(called):
            inspect.signature(called).bind_partial(**{word.arg: None for word in node.keywords if word.arg})
        elif isinstance(node, ast.Attribute):
            value(node)
