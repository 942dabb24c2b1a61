"""What must hold of every figure, drawn from examples of what it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from prisma_steps import schema
from prisma_steps.figures.style import FigureParams
from prisma_steps.step import Step, all_steps
from tests.examples import Case, Drawn, cases, drawn

FIGURES = {
    name: step
    for name, step in all_steps().items()
    if step.is_figure and step.module.startswith("prisma_steps.figures.")  # other tests declare some too
}
EVERY = [(name, number) for name, step in FIGURES.items() for number in range(len(cases(step)))]

KINDS = [
    kind for kind in vars(schema).values() if isinstance(kind, schema.Kind) and kind is not schema.Anything
]

every_figure = pytest.mark.parametrize(
    ("name", "number"), EVERY, ids=[f"{name}-{number}" for name, number in EVERY]
)


@cache
def of(name: str, number: int) -> Drawn:
    return drawn(FIGURES[name], cases(FIGURES[name])[number])


def is_colour_bar(axes: Axes) -> bool:
    return hasattr(axes, "_colorbar")


@every_figure
def test_no_axes_are_empty(name: str, number: int) -> None:
    figure = of(name, number).plot.figure
    assert figure.axes or figure.texts
    for axes in figure.axes:
        arrays = [np.ma.filled(image.get_array().astype(float), np.nan) for image in axes.images]
        arrays += [np.asarray(line.get_ydata(), float) for line in axes.lines]
        shapes = [*axes.patches, *axes.collections, *axes.texts]
        assert shapes or any(np.isfinite(values).any() for values in arrays), f"empty axes: {axes}"


@every_figure
def test_axes_are_labelled(name: str, number: int) -> None:
    figure = of(name, number).plot.figure
    for axes in figure.axes:
        if is_colour_bar(axes):
            assert axes.get_xlabel() or axes.get_ylabel(), "a colour bar without a label"
        elif axes.axison:
            for axis, shared, of_all in (
                (axes.xaxis, axes.get_shared_x_axes(), figure.get_supxlabel()),
                (axes.yaxis, axes.get_shared_y_axes(), figure.get_supylabel()),
            ):
                siblings = [getattr(one, f"{axis.axis_name}axis") for one in shared.get_siblings(axes)]
                labels = [one.get_label_text() for one in siblings]
                assert not has_ticks(axis) or any(labels) or of_all, f"no label along {axis} of {axes}"


def has_ticks(axis: Axis) -> bool:
    return axis.get_visible() and any(
        text.get_text() and text.get_visible() for text in axis.get_ticklabels()
    )


@every_figure
def test_labels_have_units(name: str, number: int) -> None:
    """A label that begins with the long name of a number has its units, be it as "edges" of a circuit."""
    drawing, numbers = of(name, number).plot.figure, of(name, number).output.data
    labels = [text for axes in drawing.axes for text in (axes.get_xlabel(), axes.get_ylabel())]
    for variable in numbers.data_vars.values():
        long_name, units = variable.attrs["long_name"].lower(), variable.attrs["units"]
        if units != "1":
            named = [text for text in labels if text.lower().startswith(long_name)]
            without = [text for text in named if units.lower() not in text.lower()]
            assert not without, f"{without} lacks the units {units}"


@every_figure
def test_texts_lie_apart_and_on_the_page(name: str, number: int) -> None:
    figure = of(name, number).plot.figure
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    width, height = figure.bbox.size
    for text, box in boxes:
        # A pixel is what antialiasing and rounding of glyphs take.
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, (
            f"cut off: {text!r}"
        )
    for (one, first), (other, second) in combinations(boxes, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        down = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(across, down) < 1, f"{one!r} lies on {other!r}"


def texts(figure: Figure) -> Iterator[Text]:
    """All that is written and visible, labels of ticks outside of the limits left out."""
    for axes in figure.axes:
        written = [axes.title, *axes.texts]
        if axes.axison:
            written += [axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                written += [tick.label1 for tick in axis._update_ticks()]
        legends = [legend.get_texts() for legend in [axes.get_legend()] if legend]
        yield from (text for text in [*written, *sum(legends, [])] if shown(text))
    for legend in figure.legends:
        yield from filter(shown, legend.get_texts())
    yield from filter(shown, figure.texts)


def shown(text: Text) -> bool:
    return bool(text.get_visible() and text.get_text().strip())


@every_figure
def test_numbers_hold_what_is_drawn(name: str, number: int, tmp_path: Path) -> None:
    """Cells of maps, points of lines and lengths of bars are in numbers.csv, which has 9 digits."""
    found = of(name, number)
    found.output.files["numbers.csv"](tmp_path / "numbers.csv")
    numbers = pd.read_csv(tmp_path / "numbers.csv")
    assert len(numbers) == found.output.data.sizes["point"] > 0
    known = np.sort(numbers.select_dtypes("number").to_numpy(float).ravel())
    known = known[np.isfinite(known)]
    for axes in found.plot.figure.axes:
        if is_colour_bar(axes):
            continue
        for values in plotted(axes):
            near = known[np.clip(np.searchsorted(known, values), 1, len(known) - 1)[:, None] - [1, 0]]
            # numbers.csv has 9 digits; matplotlib keeps images in float32 at worst, which has 7.
            apart = abs(near - values[:, None]).min(1)
            assert (apart <= 1e-6 * np.maximum(abs(values), 1e-3)).all(), f"drawn, but not in numbers: {axes}"


def plotted(axes: Axes) -> Iterator[np.ndarray]:
    """The numbers that are drawn as heights, lengths and colours; colours of patches of images left out."""
    arrays = [np.ma.filled(image.get_array(), np.nan) for image in axes.images]
    yield from (finite(array) for array in arrays if array.ndim == 2)
    if not axes.axison:
        return
    in_data = [line for line in axes.lines if line.get_transform() == axes.transData]
    # The caps of error bars are lines of such markers.
    data_lines = [line for line in in_data if line.get_marker() not in ("|", "_")]
    yield from (finite(line.get_ydata()) for line in data_lines)
    for bars in axes.containers:
        if bars.__class__.__name__ == "BarContainer":
            yield finite(bars.datavalues)


def finite(values: object) -> np.ndarray:
    flat = np.asarray(values, float).ravel()
    return flat[np.isfinite(flat)]


@every_figure
def test_files_are_fit_for_print(name: str, number: int, tmp_path: Path) -> None:
    found = of(name, number)
    assert isinstance(found.params, FigureParams)
    for file, write in found.output.files.items():
        write(tmp_path / file)
    pdf = (tmp_path / "figure.pdf").read_bytes()
    embedded_as_true_type = pdf.count(b"/FontFile2")
    assert embedded_as_true_type == pdf.count(b"/Type /FontDescriptor") > 0
    assert b"/Type3" not in pdf and b"/Type1" not in pdf
    picture = Image.open(tmp_path / "figure.png")
    assert picture.size[0] == round(found.params.inches * 200)
    # 9.7 inches are the height of the text of a page in A4 or letter with margins of about an inch.
    assert picture.size[1] <= 9.7 * 200
    assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert not is_blank(picture)


def is_blank(picture: Image.Image) -> bool:
    low, high = picture.convert("L").getextrema()
    return low == high


@every_figure
def test_caption_is_a_sentence(name: str, number: int) -> None:
    caption = of(name, number).output.data.attrs["caption"]
    assert caption[0].isupper() and caption.endswith(".") and "nan" not in caption


SPOILED: dict[str, tuple[Callable[[Figure], object], str]] = {
    "axes without data": (lambda figure: figure.add_axes((0.4, 0.4, 0.1, 0.1)), "no_axes_are_empty"),
    "an axis without a label": (lambda figure: figure.axes[0].set_xlabel(""), "axes_are_labelled"),
    "a label without units": (lambda figure: figure.axes[0].set_xlabel("L0"), "labels_have_units"),
    "two texts in one place": (
        lambda figure: [figure.text(0.5, 0.5, text) for text in "ab"],
        "texts_lie_apart_and_on_the_page",
    ),
    "a text beyond the page": (
        lambda figure: figure.text(0.99, 0.5, "beyond"),
        "texts_lie_apart_and_on_the_page",
    ),
    "a line of other numbers": (
        lambda figure: figure.axes[0].plot([10, 20], [0.111, 0.222]),
        "numbers_hold_what_is_drawn",
    ),
}


@pytest.mark.parametrize(("spoil", "check"), SPOILED.values(), ids=SPOILED)
def test_what_is_wrong_is_found(
    spoil: Callable[[Figure], object], check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = of.__wrapped__("sae_pareto", 0)
    folder = (tmp_path,) if check.startswith("numbers") else ()
    monkeypatch.setitem(globals(), "of", lambda *_: found)
    globals()[f"test_{check}"]("sae_pareto", 0, *folder)
    spoil(found.plot.figure)
    with pytest.raises(AssertionError):
        globals()[f"test_{check}"]("sae_pareto", 0, *folder)


def test_a_figure_without_an_example_says_what_to_add() -> None:
    declared = FIGURES["ablation_heatmap"]
    with pytest.raises(
        AssertionError, match=r"ablation_heatmap cannot be drawn .*\nSay how in CASES of tests"
    ):
        drawn(declared, Case())
    strange = schema.Kind("strange", frozenset())
    slots = {"strange": type(declared.inputs["ablation"])(strange)}
    new = Step("new", declared.function, declared.params, slots, schema.Figure)
    with pytest.raises(AssertionError, match="no example of strange: add a function"):
        drawn(new, Case())


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
@pytest.mark.parametrize("clips", [False, True])
def test_every_kind_has_an_example(kind: schema.Kind, clips: bool) -> None:
    example = schema.example(kind, clips=clips)
    schema.check(example, kind)
    assert set(kind.required) <= set(example.data_vars)
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in example.variables.values())
    assert example.identical(schema.example(kind, clips=clips))
