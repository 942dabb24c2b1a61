from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from pydantic import ValidationError

from prisma_steps.figures.latex import escape
from prisma_steps.figures.style import house_style
from prisma_steps.figures.table import Params, table
from prisma_steps.job import Job
from prisma_steps.schema import MEANINGS
from prisma_steps.step import Output, StepError

draw = table.__wrapped__


@pytest.fixture
def one_layer(quality: xr.Dataset) -> xr.Dataset:
    return quality.isel(layer=0)


def tex(data: xr.Dataset, **params: object) -> list[str]:
    return draw(data, Params(**params)).files["table.tex"].decode().splitlines()


def body(data: xr.Dataset, **params: object) -> list[list[str]]:
    """The cells of the rows below the headers."""
    lines = tex(data, **params)
    rows = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    return [row.removesuffix(r" \\").split(" & ") for row in rows]


def texts(plot: object) -> list[str]:
    return [text.get_text() for text in plot.figure.texts]


def test_cells_are_means_over_seeds_with_standard_errors(one_layer: xr.Dataset) -> None:
    seeds = one_layer["ce_recovered"]
    rows = body(one_layer, variables=["ce_recovered"], number_format=".4f")
    assert len(rows) == 8
    for row, (architecture, sparsity) in zip(rows, np.ndindex(2, 4), strict=True):
        found = seeds.isel(architecture=architecture, sparsity=sparsity).values
        assert row[-1] == rf"${found.mean():.4f} \pm {found.std(ddof=1) / 2**0.5:.4f}$"


def test_what_is_drawn_is_what_latex_has(one_layer: xr.Dataset) -> None:
    params = Params(variables=["l0", "fvu"], columns=["architecture"], select={"token_kind": "all"})
    plot = draw(one_layer, params)
    written = plot.files["table.tex"].decode()
    numbers = re.findall(r"\$([\d.]+) \\pm ([\d.]+)\$", written)
    assert len(numbers) == 2 * 2 * 4
    drawn = [text for text in texts(plot) if "±" in text]
    assert drawn == [f"{value} ± {error}" for value, error in numbers]


def test_headers_name_variables_with_units_then_values_of_the_columns(one_layer: xr.Dataset) -> None:
    params = {"variables": ["l0", "fvu"], "columns": ["architecture", "token_kind"], "rows": ["sparsity"]}
    lines = tex(one_layer.isel(seed=[0]), **params, width="two_columns")
    assert r" & \multicolumn{6}{c}{L0 (latent/token)} & \multicolumn{6}{c}{FVU} \\" in lines
    assert r"\cmidrule(lr){2-7} \cmidrule(lr){8-13}" in lines
    assert (
        " & " + " & ".join([r"\multicolumn{3}{c}{relu}", r"\multicolumn{3}{c}{topk}"] * 2) + r" \\" in lines
    )
    assert "L1 coefficient, k & " + " & ".join(["all", "cls", "patch"] * 4) + r" \\" in lines
    assert lines[1] == r"\begin{tabular}{l" + 12 * "r" + "}"
    values = one_layer.isel(seed=0)
    row = next(line for line in lines if line.startswith("0.001, 16"))
    cells = [float(cell.strip("$ \\")) for cell in row.split(" & ")[1:]]
    expected = values.isel(sparsity=2)[["l0", "fvu"]].to_array().transpose("variable", "architecture", ...)
    np.testing.assert_allclose(cells, expected.values.ravel(), rtol=6e-3)  # three digits are written


def test_numbers_along_columns_are_told_of_what(quality: xr.Dataset) -> None:
    lines = tex(quality, variables=["ce_recovered"], columns=["layer"], width="two_columns")
    assert r"Architecture & L1 coefficient, k & layer = 0 & layer = 1 & layer = 2 \\" in lines


def test_rows_name_what_changes(one_layer: xr.Dataset) -> None:
    rows = body(one_layer, variables=["ce_recovered"], rows=["sparsity", "architecture"])
    assert [row[:2] for row in rows[:3]] == [["0.0001, 64", "relu"], ["", "topk"], ["0.0003, 32", "relu"]]


def test_numbers_are_the_points_that_are_shown(one_layer: xr.Dataset) -> None:
    found = table(one_layer, Params(variables=["fvu"], select={"token_kind": "cls"}), Job()).data
    assert found.sizes["point"] == 8
    assert {"architecture", "sparsity", "k", "l1_coefficient", "fvu", "fvu_standard_error"} == set(found)
    expected = one_layer["fvu"].sel(token_kind="cls").mean("seed")
    np.testing.assert_allclose(found["fvu"], expected.values.ravel())
    assert found.attrs["caption"] == "FVU, for token kind cls. Mean of 2 seeds ± 1 standard error."


def test_files_lie_beside_the_figure(one_layer: xr.Dataset) -> None:
    found: Output = table(one_layer, Params(variables=["ce_recovered"]), Job())
    assert set(found.files) == {"figure.pdf", "figure.png", "numbers.csv", "table.tex"}


@pytest.mark.parametrize(("best", "choose"), [("lowest", np.argmin), ("highest", np.argmax)])
def test_the_best_of_each_column_is_bold(one_layer: xr.Dataset, best: str, choose: object) -> None:
    params = {"variables": ["ce_recovered"], "columns": ["architecture"], "best": {"ce_recovered": best}}
    rows = body(one_layer, **params)
    mean = one_layer["ce_recovered"].mean("seed")
    for column, architecture in enumerate(["relu", "topk"], 1):
        bold = [place for place, row in enumerate(rows) if r"\mathbf" in row[column]]
        assert bold == [choose(mean.sel(architecture=architecture).values)]
    drawn = [text for text in draw(one_layer, Params(**params)).figure.texts if text.get_weight() == "bold"]
    assert len(drawn) == 2


def test_what_is_written_alike_is_as_good() -> None:
    data = xr.Dataset({"fvu": ("seed", [0.10001, 0.10002, 0.3])})
    rows = body(data, variables=["fvu"], average=None, best={"fvu": "lowest"}, number_format=".3f")
    assert [r"\mathbf" in row[1] for row in rows] == [True, True, False]


@pytest.mark.parametrize(
    ("value", "spec", "drawn", "written"),
    [
        (0.123456, "#.3g", "0.123", "$0.123$"),
        (100.0, "#.3g", "100", "$100$"),
        (-1.5e-7, "#.3g", "−1.50 × 10⁻⁷", r"$-1.50 \times 10^{-7}$"),
        (0.9512, ".1%", "95.1%", r"$95.1\%$"),
        (1234.5, ",.1f", "1,234.5", "$1{,}234.5$"),
        (7, "#.3g", "7", "$7$"),
        (True, "#.3g", "true", "true"),
        ("a_b", "#.3g", "a_b", r"a\_b"),
        (np.nan, "#.3g", "–", "--"),
    ],
)
def test_how_values_are_written(value: object, spec: str, drawn: str, written: str) -> None:
    data = xr.Dataset({"x": ("n", [value, value]), "fvu": ("n", [1.0, 2.0])}, {"n": ["a", "b"]})
    params = {"variables": ["x", "fvu"], "number_format": {"x": spec}}
    assert [row[1] for row in body(data, **params)] == [written, written]
    assert drawn in texts(draw(data, Params(**params)))


def test_standard_errors_have_the_decimals_of_their_numbers() -> None:
    data = xr.Dataset({"x": (("n", "seed"), [[1.0, 3.0], [10.04, 10.08], [1e-9, 3e-9]])}, {"n": list("abc")})
    assert [row[1] for row in body(data, variables=["x"])] == [
        r"$2.00 \pm 1.00$",
        r"$10.1 \pm 0.0$",
        r"$2.00 \times 10^{-9} \pm 1.00 \times 10^{-9}$",
    ]


def test_rows_without_any_value_are_left_out() -> None:
    data = xr.Dataset({"x": (("n_layers", "layer"), [[1.0, np.nan], [2.0, 3.0]])}, {"n_layers": [1, 2]})
    assert body(data, variables=["x"]) == [["1", "0", "$1.00$"], ["2", "0", "$2.00$"], ["", "1", "$3.00$"]]
    assert len(draw(data, Params(variables=["x"])).numbers) == 3
    assert body(data, variables=["x"], columns=["layer"])[0] == ["1", "$1.00$", "--"]


def test_a_variable_without_a_dim_is_the_same_along_it(one_layer: xr.Dataset) -> None:
    rows = body(one_layer.isel(architecture=0), variables=["fvu", "ce_recovered"])
    assert len(rows) == 4 * 3
    assert len({row[3] for row in rows[:3]}) == 1 and len({row[2] for row in rows[:3]}) == 3


HOSTILE = '\\input{/etc/passwd} $x$ 50% a_b & #1 {~} ^<>|" \n\\end{tabular}'


def test_no_text_is_taken_for_a_command() -> None:
    data = xr.Dataset({"x": ("n", [1.0, 2.0])}, {"n": [HOSTILE, "b"]})
    data["x"].attrs = {"long_name": HOSTILE, "units": "%"}
    lines = tex(data, variables=["x"])
    for line in (lines[3], lines[5]):
        assert r"\textbackslash{}input\{/etc/passwd\} \$x\$ 50\% a\_b \& \#1 \{\textasciitilde{}\}" in line
        assert line.count(r"\end{tabular}") == 0
    assert [len(re.split(r"(?<!\\)&", line)) for line in (lines[3], *lines[5:7])] == [2, 2, 2]
    # Without what escapes them, nothing is left that LaTeX would act on.
    known = r"\\text(?:backslash|asciitilde|asciicircum|less|greater|bar|quotedbl)\{\}|\\[{}$&#_%]"
    assert not re.search(r"[\\{}$&#_%~^<>|\"\n]", re.sub(known, "", escape(HOSTILE)))
    assert any(HOSTILE.split()[0] in text for text in texts(draw(data, Params(variables=["x"]))))


@pytest.mark.parametrize("name", MEANINGS)
def test_names_of_the_schema_are_in_the_fonts_of_latex(name: str) -> None:
    for text in MEANINGS[name]:
        escape(text).encode("latin-1")


def boxes(plot: object) -> list:
    canvas = FigureCanvasAgg(plot.figure)
    return [text.get_window_extent(canvas.get_renderer()) for text in plot.figure.texts if text.get_text()]


@pytest.mark.parametrize(
    "params",
    [
        {"variables": ["l0", "fvu"], "select": {"token_kind": "all"}},
        {"variables": ["fvu", "l0"], "columns": ["architecture", "token_kind"], "width": "two_columns"},
        {"variables": ["a_name_so_long_that_it_takes_several_lines", "l0"], "select": {"token_kind": "all"}},
        {
            "variables": ["ce_recovered"],
            "rows": ["sparsity", "architecture"],
            "best": {"ce_recovered": "lowest"},
        },
    ],
)
def test_no_text_touches_another_or_leaves_the_figure(one_layer: xr.Dataset, params: dict) -> None:
    data = one_layer.isel(seed=0) if params.get("width") == "two_columns" else one_layer
    data = data.assign(a_name_so_long_that_it_takes_several_lines=data["fvu"])
    with house_style():
        plot = draw(data, Params(**params))
        found = boxes(plot)
    for place, box in enumerate(found):
        assert not any(box.overlaps(other) for other in found[place + 1 :])
    edge = plot.figure.bbox
    assert min(box.x0 for box in found) >= 0 and max(box.x1 for box in found) <= edge.x1
    assert min(box.y0 for box in found) >= 0 and max(box.y1 for box in found) <= edge.y1
    heights = sorted({line.get_ydata()[0] for line in plot.figure.get_children() if isinstance(line, Line2D)})
    gaps = [lower - upper for upper, lower in pairwise(heights)]
    assert len(heights) >= 3 and min(gaps) > 0.02


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"variables": ["mse"]}, r"table: the data has no mse; it has the dims architecture \(2\)"),
        ({"variables": ["fvu"], "rows": ["head"]}, "the data has no head"),
        ({"variables": ["fvu"], "average": "fold"}, "the data has no fold"),
        ({"variables": ["fvu"], "select": {"k": 8}}, "names k, which is no dim of the data; its dims"),
        ({"variables": ["fvu"], "select": {"token_kind": "x"}}, "no token_kind x; the data has all, cls"),
        ({"variables": ["fvu"], "rows": ["layer"]}, r"architecture \(2\), .* neither row nor column.*select"),
        ({"variables": ["fvu"], "rows": ["seed"]}, "seed is averaged and cannot be a row or a column"),
        ({"variables": ["layer"]}, "layer is a dim: name it under rows or columns"),
        ({"variables": ["ce_recovered"], "columns": ["token_kind"]}, "token_kind is no dim of these"),
        ({"variables": ["fvu"], "best": {"l0": "lowest"}}, "names l0, but the variables are fvu"),
        ({"variables": ["fvu"], "columns": ["layer", "sparsity", "token_kind"]}, "inches wide.*two_columns"),
    ],
)  # fmt: skip
def test_bad_requests(quality: xr.Dataset, params: dict, message: str) -> None:
    with pytest.raises(StepError, match=message):
        draw(quality, Params(**params))


def test_too_much_for_a_page() -> None:
    many = xr.Dataset({"x": ("n", np.arange(100.0))})
    with pytest.raises(StepError, match="table of 100 rows is 1.* inches high"):
        draw(many, Params(variables=["x"]))
    with pytest.raises(StepError, match=r"3000 cells \(n \(3000\)\) are too many"):
        draw(xr.Dataset({"x": ("n", np.arange(3000.0))}), Params(variables=["x"]))
    with pytest.raises(StepError, match="of x all values are missing"):
        draw(xr.Dataset({"x": ("n", [np.nan] * 2)}), Params(variables=["x"]))
    with pytest.raises(StepError, match="word holds text, of which there is no mean over seed"):
        draw(xr.Dataset({"word": ("seed", ["a", "b"])}), Params(variables=["word"]))


def test_a_format_that_is_none() -> None:
    with pytest.raises(ValidationError, match="'3 digits' is no format of a number"):
        Params(variables=["x"], number_format={"x": "3 digits"})


def test_a_number_without_dims_is_a_table_of_one_cell() -> None:
    plot = draw(xr.Dataset({"fvu": 0.25}), Params(variables=["fvu"]))
    assert texts(plot) == ["FVU", "0.250"]
    pd.testing.assert_frame_equal(plot.numbers[["fvu"]], pd.DataFrame({"fvu": [0.25]}))
