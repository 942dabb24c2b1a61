"""The page of an experiment that was really run, in Chromium: as it is opened from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.report.chromium import REQUIRED, Browser, Tab, program

WIDE, NARROW, HEIGHT = 1280, 360, 900

#: What the Tab key is to reach, in the order of the document: of closed details only the summary.
REACHABLE = """
[...document.querySelectorAll("a[href], summary, [tabindex='0']")].filter(
  (found) => {
    const closed = found.parentElement.closest("details:not([open])");
    return !closed || (found.tagName === "SUMMARY" && found.parentElement === closed
      && !closed.parentElement.closest("details:not([open])"));
  })"""

#: The place of what has the focus in that list, and what shows that it has.
FOCUSED = f"""
(() => {{
  const found = document.activeElement, style = getComputedStyle(found), box = found.querySelector("rect");
  return {{
    place: {REACHABLE}.indexOf(found),
    outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    frame: box ? parseFloat(getComputedStyle(box).strokeWidth) : 0,
    rect: found.getBoundingClientRect().toJSON(),
  }};
}})()"""

#: Contrast of every text with its ground (WCAG 2.2), the least of all.
CONTRAST = """
(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).slice(0, 3).map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (found) => {
    const box = found instanceof SVGTextElement && found.parentElement.querySelector("rect");
    if (box) return getComputedStyle(box).fill;
    const colour = getComputedStyle(found).backgroundColor;
    return channels(colour)[3] === 0 && found.parentElement ? ground(found.parentElement) : colour;
  };
  const shown = (found) => found.checkVisibility()
    && [...found.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const texts = [...document.body.querySelectorAll("*")].filter(shown);
  return Math.min(...texts.filter((found) => found.tagName !== "title").map((found) => {
    const style = getComputedStyle(found);
    const pair = [light(found instanceof SVGElement ? style.fill : style.color), light(ground(found))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  }));
})()"""

Open = Callable[..., Tab]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture
def open_page(browser: Browser, published: Path) -> Open:
    def opened(width: int = WIDE, dark: bool = False) -> Tab:
        tab = Tab(browser, published, width, HEIGHT, dark)
        tab.evaluate("for (const image of document.images) image.loading = 'eager'")
        tab.evaluate("Promise.allSettled([...document.images].map((image) => image.decode()))")
        return tab

    return opened


def open_all_details(tab: Tab) -> None:
    tab.evaluate("for (const found of document.querySelectorAll('details')) found.open = true")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_nothing_is_broken_asked_of_a_network_or_complained_of(
    open_page: Open, published: Path, width: int, dark: bool
) -> None:
    tab = open_page(width, dark)
    sizes = tab.evaluate("[...document.images].map((image) => image.complete && image.naturalWidth)")
    assert len(sizes) == 5 and all(sizes)
    asked = [event["request"]["url"] for event in tab.seen("Network.requestWillBeSent")]
    assert len(asked) == 6
    assert all(url.startswith(published.parent.as_uri()) for url in asked)
    assert not tab.seen("Network.loadingFailed")
    assert not tab.seen("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    assert not tab.seen("Page.javascriptDialogOpening")


def test_texts_of_the_experiment_are_shown_as_they_are(open_page: Open) -> None:
    tab = open_page()
    assert tab.evaluate("document.title") == "<script>alert('title')</script> & 2 > 1"
    assert tab.evaluate("document.querySelector('.about').textContent").startswith(
        "<img src=x onerror=alert(1)>"
    )
    assert "</figcaption><b>x</b>" in tab.evaluate("document.body.innerText")
    assert tab.evaluate("document.querySelectorAll('script, b, [onerror]').length") == 0


def test_the_checks_see_what_is_broken(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "broken.html"
    file.write_text(
        "<!doctype html><img src='none.png'><script>console.error('so'); undefinedFunction()</script>"
        "<p style='width: 500px'>wide"
    )
    tab = Tab(browser, file, NARROW, HEIGHT)
    assert not tab.evaluate("document.images[0].naturalWidth")
    assert tab.seen("Network.loadingFailed") and tab.seen("Log.entryAdded")
    assert tab.seen("Runtime.consoleAPICalled") and tab.seen("Runtime.exceptionThrown")
    assert tab.evaluate("document.documentElement.scrollWidth") > NARROW


@pytest.mark.parametrize("opened", [False, True])
def test_a_narrow_window_scrolls_downwards_only(open_page: Open, opened: bool) -> None:
    tab = open_page(NARROW)
    if opened:
        open_all_details(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= NARROW
    # What is wider scrolls inside a box of its own, which the keyboard reaches.
    inner = tab.evaluate("""[...document.querySelectorAll("body *")].filter((found) =>
        found.scrollWidth > found.clientWidth && getComputedStyle(found).overflowX === "auto")
        .map((found) => [found.tabIndex, found.getBoundingClientRect().right])""")
    assert inner and all(place == 0 and right <= NARROW for place, right in inner)


def walk(tab: Tab, modifiers: int = 0) -> list[dict[str, Any]]:
    """What has the focus after each press of the Tab key, to the end of the document."""
    found = []
    for _ in range(500):
        tab.press("Tab", modifiers)
        focused = tab.evaluate(FOCUSED)
        if focused["place"] < 0:
            return found
        found.append(focused)
    raise AssertionError("the Tab key never leaves the page")


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_tab_reaches_all_in_order_and_shows_where_it_is(open_page: Open, opened: bool, width: int) -> None:
    tab = open_page(width)
    if opened:
        open_all_details(tab)
    found = walk(tab)
    assert [focused["place"] for focused in found] == list(range(tab.evaluate(f"{REACHABLE}.length")))
    assert len(found) > 40
    for focused in found:
        assert focused["outline"] >= 2 or focused["frame"] >= 3
        assert 0 <= focused["rect"]["top"] < HEIGHT and focused["rect"]["right"] > 0
        assert focused["rect"]["left"] < width


def test_focus_changes_what_is_seen_in_the_graph(open_page: Open, tmp_path: Path) -> None:
    tab = open_page()
    before, after = tmp_path / "before.png", tmp_path / "after.png"
    tab.evaluate("document.querySelector('svg').scrollIntoView()")
    tab.screenshot(before)
    tab.evaluate("document.querySelector('svg a').focus({focusVisible: true})")
    tab.screenshot(after)
    pixels = [np.asarray(Image.open(file).convert("L"), float) for file in (before, after)]
    changed = np.abs(pixels[0] - pixels[1]) > 30
    assert changed.sum() > 200


def test_enter_opens_and_closes_details(open_page: Open) -> None:
    tab = open_page()
    tab.evaluate("document.querySelector('article summary').focus()")
    shown = "document.querySelector('article pre').checkVisibility()"
    for expected in (True, False, True):
        tab.press("Enter")
        assert tab.evaluate("document.querySelector('article details').open") is expected
        assert tab.evaluate(shown) is expected
    text = tab.evaluate("document.querySelector('article pre').innerText")
    assert "# Handwritten digits" in text and "patterns" not in text


def test_enter_on_a_box_of_the_graph_leads_to_its_figure_or_row(open_page: Open) -> None:
    tab = open_page()
    for name, target in (("attention", "figure-2"), ("vit", "node-vit"), ("each", "figure-4")):
        tab.evaluate(f"document.querySelector('svg a[aria-label^=\"{name}:\"]').focus()")
        tab.press("Enter")
        assert tab.evaluate("location.hash") == f"#{target}"
        top = tab.evaluate("document.querySelector(':target').getBoundingClientRect().top")
        assert 0 <= top < HEIGHT


def test_every_link_leads_to_something(open_page: Open, published: Path) -> None:
    tab = open_page()
    links = tab.evaluate(
        "[...document.querySelectorAll('a')].map((a) => [a.getAttribute('href'), a.textContent])"
    )
    assert {"PDF", "PNG", "Numbers (CSV)", "LaTeX", "Artifact"} <= {text for _, text in links}
    inner = [target[1:] for target, _ in links if target.startswith("#")]
    assert all(tab.evaluate(f"document.getElementById('{target}') !== null") for target in inner)
    files = [unquote(target) for target, _ in links if not target.startswith("#")]
    assert all((published.parent / path).exists() for path in files)
    assert any((published.parent / path / "data.zarr").is_dir() for path in files)


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_are_what_they_say_and_can_be_read(
    open_page: Open, dark: bool, tmp_path: Path
) -> None:
    tab = open_page(dark=dark)
    open_all_details(tab)
    tab.screenshot(tmp_path / "page.png")
    ground = np.asarray(Image.open(tmp_path / "page.png").convert("L"))[:, :40]
    assert ground.max() < 60 if dark else ground.min() > 240
    assert tab.evaluate(CONTRAST) >= 4.5


def test_reading_aloud_finds_names_for_all_that_can_be_reached(open_page: Open) -> None:
    tab = open_page()
    open_all_details(tab)
    tab.call("Accessibility.enable")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    told = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    assert all(
        name for role, name in told if role in ("link", "image", "region", "DisclosureTriangle", "heading")
    )
    assert ("link", "vit: train_vit, 4 jobs, done, made of images") in told
    assert any(name == "Graph of the experiment" for _, name in told)


def test_without_chromium_tests_are_skipped_or_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        program()
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        program()
