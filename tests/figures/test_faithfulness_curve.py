from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgba

from prisma_steps.figures.faithfulness_curve import Params, faithfulness_curve
from prisma_steps.figures.latent_faithfulness_curve import Params as LatentParams
from prisma_steps.figures.latent_faithfulness_curve import latent_faithfulness_curve
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = faithfulness_curve.__wrapped__
LEVELS = 2  # dotted lines at 0 and 1, drawn last


def curves(plot) -> list:  # noqa: ANN001
    return plot.figure.axes[0].lines[:-LEVELS]


def test_a_line_for_each_ablation_and_run_against_the_edges_kept(circuit: xr.Dataset) -> None:
    drawn = curves(draw(circuit, Params()))
    expected = [
        values
        for ablation in range(2)
        for values in (
            circuit["faithfulness"][ablation],
            circuit["faithfulness_random"].mean("control")[ablation],
            circuit["faithfulness_complement"][ablation],
        )
    ]
    assert len(drawn) == 6
    for line, values in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(line.get_ydata(), values)
        np.testing.assert_allclose(line.get_xdata(), circuit["n_edges_kept"])
    assert len({to_rgba(line.get_color()) for line in drawn}) == 2


def test_bands_are_one_standard_error_over_random_circuits(circuit: xr.Dataset) -> None:
    bands = draw(circuit, Params()).figure.axes[0].collections
    assert len(bands) == 2  # of random circuits, one an ablation
    vertices = bands[0].get_paths()[0].vertices
    random = circuit["faithfulness_random"].sel(ablation="corrupted", n_edges=12)
    mean, error = random.mean().item(), random.std(ddof=1).item() / 2
    at = vertices[vertices[:, 0] == circuit["n_edges_kept"].values[-1]][:, 1]
    np.testing.assert_allclose([at.min(), at.max()], [mean - error, mean + error])


def over_seeds(circuit: xr.Dataset) -> xr.Dataset:
    """Three seeds, of which every number is another."""
    names = [name for name in circuit.data_vars if name.startswith("faithfulness")]
    seeds = [circuit.assign({name: circuit[name] + shift for name in names}) for shift in (0.0, 0.1, 0.5)]
    return xr.concat(seeds, "seed", data_vars="all", join="exact").assign_coords(seed=[0, 1, 2])


def test_with_seeds_every_line_is_their_mean_with_their_error(circuit: xr.Dataset) -> None:
    plot = draw(over_seeds(circuit), Params())
    panel = plot.figure.axes[0]
    assert len(panel.collections) == 6
    spread = np.std([0.0, 0.1, 0.5], ddof=1) / 3**0.5
    assert plot.numbers["faithfulness_standard_error"].to_numpy() == pytest.approx(spread)
    np.testing.assert_allclose(curves(plot)[0].get_ydata(), circuit["faithfulness"][0] + 0.2)
    np.testing.assert_allclose(
        curves(plot)[1].get_ydata(), circuit["faithfulness_random"][0].mean("control") + 0.2
    )
    assert "± 1 standard error over 3 seeds" in plot.caption


def test_one_ablation_has_a_colour_for_each_run(circuit: xr.Dataset) -> None:
    plot = draw(circuit.isel(ablation=[0]), Params())
    assert len({tuple(line.get_color()) for line in curves(plot)}) == 3
    texts = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert texts == ["run", "circuit", "random", "all but the circuit"]


def test_a_grid_has_panels(circuit: xr.Dataset) -> None:
    both = xr.concat([circuit, circuit], "method", data_vars="all").assign_coords(method=["eap_ig", "exact"])
    drawing = draw(both.drop_attrs(), Params(hue="ablation", width="two_columns")).figure
    assert [panel.get_title() for panel in drawing.axes] == ["method: eap_ig", "method: exact"]


def test_a_circuit_without_an_edge_has_its_place(circuit: xr.Dataset) -> None:
    circuit["n_edges_kept"][0] = 0
    panel = draw(circuit, Params()).figure.axes[0]
    assert panel.get_xscale() == "symlog"
    assert panel.get_xticks().tolist() == [0, 1, 10]
    assert curves(draw(circuit, Params()))[0].get_xdata()[0] == 0


def test_without_random_circuits(circuit: xr.Dataset) -> None:
    plot = draw(circuit.isel(control=[]), Params())
    assert len(curves(plot)) == 4
    assert set(plot.numbers["run"]) == {"circuit", "all but the circuit"}
    assert "Bands" not in plot.caption
    assert "Random" not in plot.caption


def test_numbers_and_caption(circuit: xr.Dataset) -> None:
    found = faithfulness_curve(circuit, Params(), Job()).data
    assert found.sizes["point"] == 3 * 2 * 3
    at = found.isel(
        point=(found["run"] == "random") & (found["ablation"] == "zero") & (found["n_edges"] == 6)
    )
    expected = circuit["faithfulness_random"].sel(ablation="zero", n_edges=6)
    assert at["faithfulness"].item() == pytest.approx(expected.mean().item())
    assert at["faithfulness_standard_error"].item() == pytest.approx(expected.std(ddof=1).item() / 2)
    caption = found.attrs["caption"]
    assert caption.startswith("Faithfulness of circuits with edges scored by EAP-IG to the logit difference")
    assert "mean over 32 pairs" in caption
    assert "± 1 standard error over 4 random circuits of a size" in caption


def test_circuits_of_latents(circuit: xr.Dataset) -> None:
    names = ["faithfulness", "faithfulness_random", "faithfulness_complement"]
    latents = circuit[names].drop_vars(["source", "target"], errors="ignore").rename(n_edges="n_nodes")
    plot = latent_faithfulness_curve.__wrapped__(latents, LatentParams())
    np.testing.assert_allclose(curves(plot)[0].get_xdata(), [2, 6, 12])
    assert plot.figure.axes[0].get_xlabel() == "Latents and error terms of the circuit"
    assert "circuits of latents and error terms" in plot.caption


def test_bad_data(circuit: xr.Dataset) -> None:
    with pytest.raises(StepError, match="faithfulness_curve: the data has no ablation; it has the dims"):
        draw(circuit.isel(ablation=0, drop=True), Params())
    with pytest.raises(StepError, match="hue is 'colour', but the grid axes are"):
        draw(circuit, Params(hue="colour"))
