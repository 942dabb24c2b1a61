from __future__ import annotations

from html.parser import HTMLParser

import pytest

from prisma_steps.report.page import (
    FigureEntry,
    Made,
    NodeEntry,
    Page,
    Provenance,
    Upstream,
    duration,
    render_page,
)

HOSTILE = "<script>alert('1')</script> & \"><img src=x onerror=alert(1)> {{ 7 * 7 }}"
ASSETS = {"img": "src", "a": "href", "link": "href", "script": "src", "iframe": "src", "use": "href"}


class Reader(HTMLParser):
    """Collects what a browser would see."""

    VOID = {"meta", "img", "br", "hr", "link", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], "unclosed elements"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page(text: str = "Sprites", folder: str = "pareto") -> Page:
    provenance = Provenance(
        step=text,
        key="0123456789abcdef",
        parameters={text: text, "width": "one_column", "caption": None},
        upstream=[
            Upstream("empty", "load_images", [Made("aa", {}, f"artifacts/{folder}", text, {text: text})]),
            Upstream(text, text, [Made(text, {text: text, "causal": False}), Made("bb", {"k": 1})]),
        ],
        seconds=1.25,
        date="23 November 2026",
        versions={text: "3.11", "torch": "2.13"},
        experiment=f"nodes:\n  # {text}\n",
    )
    files = {"PDF": f"{folder}/figure.pdf", text: f"{folder}/numbers.csv"}
    figure = FigureEntry(text, text, f"{folder}/figure.png", files, provenance)
    nodes = [
        NodeEntry(text, text, {"done": 3, "failed": 1, text: 2}, 75.0, ["a1", "b2"], ["empty"]),
        NodeEntry("empty", "load_images", {"waiting": 1}, None, ["c3"], (), None, f"artifacts/{folder}"),
        NodeEntry("drawn", text, {"done": 1}, 1.0, ["d4"], [text, "empty"], [2]),
        NodeEntry("undrawn", text, {text: 1}, None, ["e5"], [text], []),
    ]
    return Page(text, text, f"title: {text}\nnodes: {{}}\n", [figure, figure], nodes, "23 November 2026")


def test_every_text_is_shown_and_none_becomes_markup() -> None:
    plain, hostile = Reader(render_page(page())), Reader(render_page(page(HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert hostile.text.count("<script>alert('1')</script>") >= 20
    assert "{{ 7 * 7 }}" in hostile.text
    for attrs in hostile.all("img"):
        assert set(attrs) == {"src", "alt", "loading"}
        assert attrs["alt"] == HOSTILE


def test_every_target_is_relative_and_within_reach_of_the_page() -> None:
    targets = [
        attrs[ASSETS[tag]]
        for tag, attrs in Reader(render_page(page())).tags
        if attrs.get(ASSETS.get(tag, ""))
    ]
    assert "pareto/figure.png" in targets
    assert "artifacts/pareto/" in targets
    assert all(target.startswith(("#", "pareto/", "artifacts/pareto/")) for target in targets)


def test_inner_links_lead_somewhere() -> None:
    reader = Reader(render_page(page()))
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    inner = [attrs["href"][1:] for attrs in reader.all("a") if attrs["href"].startswith("#")]
    assert inner[:2] == ["figure-1", "figure-2"]
    assert {"node-Sprites", "node-empty", "node-undrawn"} <= set(inner) <= set(ids)
    labelled = [attrs["aria-labelledby"] for _, attrs in reader.tags if "aria-labelledby" in attrs]
    described = [attrs["aria-describedby"] for _, attrs in reader.tags if "aria-describedby" in attrs]
    assert set(labelled) | set(described) <= set(ids)


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = render_page(page())
    assert "://" not in text
    assert "@import" not in text and "url(" not in text
    assert not Reader(text).all("script")


@pytest.mark.parametrize(
    "path",
    ["/figure.png", "https://x.org/a.png", "//x.org/a.png", "javascript:alert(1)", "", "\\\\host\\a.png"],
)
def test_other_paths_are_refused(path: str) -> None:
    provenance = page().figures[0].provenance
    with pytest.raises(ValueError, match="is not a path relative to the page"):
        FigureEntry("pareto", "", "figure.png", {"PDF": path}, provenance)
    with pytest.raises(ValueError, match="is not a path relative to the page"):
        FigureEntry("pareto", "", path, {}, provenance)


def test_paths_are_quoted() -> None:
    assert 'src="a%20b%23%3F/figure.png"' in render_page(page(folder="a b#?"))


def test_states_keys_and_times_of_nodes_are_shown() -> None:
    text = " ".join(Reader(render_page(page())).text.split())
    assert "3 done, 1 failed, 2 Sprites 1 min 15 s 2 keys a1, b2" in text
    assert "empty load_images 1 waiting – c3" in text


def test_provenance_is_shown() -> None:
    text = " ".join(Reader(render_page(page())).text.split())
    assert "23 November 2026, in 1.2 s" in text
    assert 'width: "one_column" caption: null' in text
    assert 'empty load_images: aadigest Sprites Sprites: "Sprites"' in text
    assert "Sprites Sprites 2 artifacts Sprites (Sprites = Sprites, causal = false) bb (k = 1)" in text
    assert "The lines of the experiment that make it nodes: # Sprites What it rests on" in text
    assert "Sprites 3.11, torch 2.13" in text


def test_boxes_of_the_graph_say_what_the_nodes_are_and_lead_to_them() -> None:
    reader = Reader(render_page(page()))
    boxes = {attrs["aria-label"]: attrs for attrs in reader.all("a") if "aria-label" in attrs}
    assert {label: attrs["href"] for label, attrs in boxes.items()} == {
        "Sprites: Sprites, 1 of 6 jobs failed, made of empty": "#node-Sprites",
        "empty: load_images, 1 job, waiting": "#node-empty",
        "drawn: figure: Sprites, 1 job, done, made of Sprites, empty": "#figure-2",
        "undrawn: figure: Sprites, 1 job, Sprites, made of Sprites": "#node-undrawn",
    }
    assert {label.split(":")[0] for label, attrs in boxes.items() if attrs.get("class") == "drawn"} == {
        "drawn",
        "undrawn",
    }
    words = " ".join(reader.text.split())
    assert "Sprites Sprites 1 of 6 jobs failed" in words and "drawn figure: Sprites 1 job, done" in words
    classes = [attrs["class"] for attrs in reader.all("text")]
    assert sorted(classes[2::3]) == ["done", "failed", "other", "other"]
    assert len(reader.all("path")) == 4 + 3  # lines, and heads of the three nodes that are made of something


@pytest.mark.parametrize(
    ("states", "summary", "state"),
    [
        ({"done": 6}, "6 jobs, done", "done"),
        ({"missing": 1}, "1 job, missing", "missing"),
        ({"done": 2, "missing": 4}, "2 of 6 jobs done", "partly"),
        ({"done": 2, "missing": 3, "failed": 1}, "1 of 6 jobs failed", "failed"),
    ],
)
def test_states_of_many_jobs_in_few_words(states: dict[str, int], summary: str, state: str) -> None:
    node = NodeEntry("n", "s", states, None, [])
    assert (node.summary, node.state) == (summary, state)


def test_page_without_figures() -> None:
    text = Reader(render_page(Page("Empty", "", "", [], [], "today"))).text
    assert "no figures that are done" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.44, "0.4 s"),
        (12.4, "12 s"),
        (59.7, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7620, "2 h 7 min"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
