"""The report in a real browser: opened, searched, zoomed, mended, exported, and read back by our own readers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potloc_fast.config import load_config
from potloc_fast.config.schema import FolderData
from potloc_fast.data.layouts import read_listing
from potloc_fast.engine.run import Run
from potloc_fast.engine.train import load_dataset
from potloc_fast.evaluation import read_ground_truth
from potloc_fast.report import Report, write_report
from tests.report.conftest import FPS, HOSTILE, LABELS, LONG


@pytest.fixture(scope="module")
def file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "report <i>.html"
    write_report(path, report)
    return path


@pytest.fixture
def page(driver: Any, file: Path) -> Any:
    """The page as it is when it is opened for the first time."""
    open_page(driver, file)
    driver.execute_script("localStorage.clear()")
    open_page(driver, file)
    yield driver
    severe = [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert severe == []


def open_page(driver: Any, file: Path, place: str = "") -> None:
    driver.get("about:blank")
    driver.get(file.as_uri() + place)
    wait(lambda: driver.execute_script("return document.documentElement.dataset.ready"))


def wait(reached: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def names(page: Any) -> list[str]:
    found: list[str] = page.execute_script(
        "return [...document.querySelectorAll('#recordings .id')].map((name) => name.textContent)"
    )
    return found


def choose(page: Any, name: str) -> None:
    buttons = page.find_elements("css selector", "#recordings button")
    next(button for button in buttons if name in button.get_attribute("textContent")).click()


def fill(page: Any, field: str, value: str) -> None:
    script = "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
    page.execute_script(f"{script} field.dispatchEvent(new Event('input'))", field, value)


def timeline(page: Any, expression: str) -> Any:
    return page.execute_script(f"const timeline = page.timeline; return {expression}")


def press(page: Any, keys: str) -> None:
    page.find_element("id", "timeline").send_keys(keys)


def middle_of(page: Any, lane: str, part: float, place: int = 0) -> tuple[int, int]:
    """Where an item is drawn, from the middle of the timeline, as the driver counts; 0 is its start, 1 its end."""
    x, y, width, height = timeline(
        page,
        f"""(() => {{
          const band = timeline.bands.find((own) => own.lane === "{lane}");
          const item = band.rows[0][{place}];
          const x = timeline.x(item.start + {part} * (item.end - item.start));
          return [x, band.y + 24, timeline.width, timeline.height];
        }})()""",
    )
    return round(x - width / 2), round(y - height / 2)


def test_names_are_shown_as_text(page: Any) -> None:
    assert sorted(names(page)) == sorted([*HOSTILE, LONG])
    for name in HOSTILE:
        choose(page, name)
        assert page.find_element("id", "name").text == name
    assert page.execute_script("return window.hacked") is None
    assert page.find_elements("css selector", "img") == []
    labels = [option.get_attribute("textContent") for option in page.find_elements("css selector", "#label option")]
    assert labels == list(LABELS)


def test_charts_are_drawn(page: Any) -> None:
    count = page.execute_script("return Charts.places.length")
    drawn = "return document.querySelectorAll('.chart[data-drawn] svg.main-svg').length"
    wait(lambda: page.execute_script(drawn) >= count)
    ticks = page.execute_script(
        "return [...document.querySelectorAll('.chart .ytick text')].map((own) => own.textContent)"
    )
    assert LABELS[0] in ticks  # as text, not in bold


def test_search_filters_and_order(page: Any) -> None:
    fill(page, "search", "QUOTED")
    assert names(page) == [HOSTILE[2]]
    fill(page, "search", "")
    fill(page, "subset", "train")
    assert sorted(names(page)) == sorted(HOSTILE[:2])
    fill(page, "subset", "test")
    fill(page, "score", "0.5")
    fill(page, "error", "missed")
    tested = sorted([*HOSTILE[2:], LONG])
    assert sorted(wait(lambda: names(page))) == tested
    for value, found in (("kind 1", tested), ("kind 2", []), ("kind 5", tested)):
        fill(page, "error", value)
        assert sorted(names(page)) == found
    fill(page, "error", "kind 1")
    fill(page, "score", "0.85")  # the double detection has 0.8
    wait(lambda: names(page) == [])
    fill(page, "error", "")
    fill(page, "sort", "long")
    assert names(page)[0] == LONG


def test_keys_and_the_link_to_a_place(page: Any, file: Path) -> None:
    choose(page, HOSTILE[2])
    whole = timeline(page, "[timeline.from, timeline.to]")
    press(page, "++")
    near = timeline(page, "[timeline.from, timeline.to]")
    assert near[1] - near[0] == pytest.approx((whole[1] - whole[0]) / 1.6**2)
    fill(page, "score", "0.25")
    wait(lambda: "s=0.25" in page.execute_script("return location.hash"))
    place = page.execute_script("return location.hash")
    press(page, "0")
    assert timeline(page, "[timeline.from, timeline.to]") == whole
    open_page(page, file, place)
    assert page.find_element("id", "name").text == HOSTILE[2]
    assert timeline(page, "[timeline.from, timeline.to, timeline.score]") == pytest.approx([*near, 0.25], abs=0.01)
    press(page, "j")
    assert page.find_element("id", "what").text.startswith("instance")
    order = names(page)
    choose(page, order[0])
    press(page, "n")
    assert page.find_element("id", "name").text == order[1]
    press(page, "p")
    assert page.find_element("id", "name").text == order[0]


def test_the_way_of_an_instance(page: Any) -> None:
    choose(page, HOSTILE[0])
    press(page, "j")
    rows = [row.text for row in page.find_elements("css selector", ".way > li")]
    assert [row.partition(":")[0] for row in rows] == [
        "Instances",
        "Points",
        "Proposals",
        "Pseudo-labels",
        "Detections",
    ]
    assert "3 - 7 s" in rows[0]
    assert "4.5 s" in rows[1]
    assert "2.5 - 7 s, tIoU 0.89" in rows[3]


def test_a_long_recording_is_drawn_from_few_values(page: Any) -> None:
    """What is drawn grows with the width of the window, not with the length of the recording."""
    choose(page, LONG)
    wait(lambda: timeline(page, "timeline.curves.length"))
    count = """
      const { prototype } = CanvasRenderingContext2D;
      const before = prototype.lineTo;
      let lines = 0;
      prototype.lineTo = function (...at) { lines += 1; return before.apply(this, at); };
      page.timeline.look(0, arguments[0]);
      page.timeline.draw();
      prototype.lineTo = before;
      const shown = page.timeline.curves.filter((own) => own.level === 0 && own.kind !== "channel");
      return [lines, page.timeline.width, shown.length];
    """
    seen = []
    for seconds in (50_000, 5_000, 500, 50):
        lines, width, curves = page.execute_script(count, seconds)
        assert lines < 6 * width * curves
        seen.append(lines)
    assert min(seen) > 50  # something is drawn at each


def test_labels_are_mended_and_read_back(page: Any, run: Run, data: Path, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    choose(page, HOSTILE[2])
    fill(page, "score", "0.5")
    canvas = page.find_element("id", "timeline")
    page.execute_script("arguments[0].scrollIntoView({ block: 'center' })", canvas)
    # The end of the first instance is drawn to the right, by three seconds.
    x, y = middle_of(page, "truth", 1.0)
    step = timeline(page, "(3 / (timeline.to - timeline.from)) * timeline.width")
    drag = ActionChains(page).move_to_element_with_offset(canvas, x - 2, y).click_and_hold()
    drag.move_by_offset(round(step / 2), 3).move_by_offset(round(step) - round(step / 2), 0).release().perform()
    assert page.find_element("id", "what").text.endswith("moved")
    # The false detection is accepted, with the other label.
    x, y = middle_of(page, "detections", 0.5, 1)
    ActionChains(page).move_to_element_with_offset(canvas, x, y).click().perform()
    assert "background" in page.find_element("id", "what").text
    press(page, "a")
    fill(page, "label", "0")
    assert LABELS[0] in page.find_element("id", "what").text
    # The second instance is deleted, and the third as well, but that is taken back.
    page.execute_script("page.select(page.timeline.items('truth')[1])")
    press(page, "d")
    page.execute_script("page.select(page.timeline.items('truth')[1])")
    press(page, "du")
    page.execute_script("page.timeline.look(9, 10)")
    press(page, "o")
    assert page.find_element("id", "what").text.startswith("point")
    changes = page.find_element("id", "changes").text
    page.refresh()
    wait(lambda: page.execute_script("return document.documentElement.dataset.ready"))
    assert page.find_element("id", "changes").text == changes  # kept in the browser

    written = {
        name: page.execute_script(f"return page.mending.{of}()")
        for name, of in (("points.csv", "pointsFile"), ("instances.csv", "instancesFile"), ("gt.json", "truthFile"))
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    config = load_config(
        "own",
        [
            *(f"data.root={data}", f"data.grid.fps={FPS}", "data.layout=plain"),
            *(f"data.points_file={tmp_path / 'points.csv'}", f"data.annotations={tmp_path / 'instances.csv'}"),
        ],
    )
    before = {item.id: item for item in load_dataset(run.config).recordings}
    assert isinstance(config.data, FolderData)
    for item in read_listing(config.data).open().recordings:
        old = before[item.id]
        if item.id != HOSTILE[2]:
            assert (item.instances, item.points) == (old.instances, old.points)
            continue
        first, third, accepted = item.instances
        assert (first.label, first.start_sec) == (LABELS[0], 3.0)
        assert first.end_sec == pytest.approx(10, abs=0.2)
        assert third == old.instances[2]
        assert (accepted.label, accepted.start_sec, accepted.end_sec) == (LABELS[0], 26, 28)
        assert [(point.label, point.time_sec) for point in item.points] == [(LABELS[0], 9.5), (LABELS[0], 27.0)]
    truth = read_ground_truth(tmp_path / "gt.json")
    assert truth.videos == (*HOSTILE, LONG)
    own = truth.take(truth.video == 2)
    assert own.start_sec.tolist() == [3, 20, 26]


def test_files_are_saved(page: Any, tmp_path: Path) -> None:
    page.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for name in ("points.csv", "instances.csv", "ground_truth.json"):
        page.find_element("xpath", f"//button[text()='{name}']").click()
        wait(lambda name=name: (tmp_path / name).is_file())  # type: ignore[misc]
    assert set(json.loads((tmp_path / "ground_truth.json").read_text())["database"]) == {*HOSTILE, LONG}


def test_dark_and_light(page: Any) -> None:
    colours = set()
    for _ in range(2):
        page.find_element("id", "theme").click()
        colours.add(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2


def test_no_side_scrolling_on_a_phone(page: Any) -> None:
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        # Charts follow the window a moment later.
        wait(lambda: page.execute_script("return document.documentElement.scrollWidth") <= 400, seconds=20)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
