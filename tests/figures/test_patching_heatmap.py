from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps import schema
from prisma_steps.figures.patch_grid import on_grid, others
from prisma_steps.figures.patching_heatmap import Params, patching_heatmap
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = patching_heatmap.__wrapped__


def test_panels_are_the_means_over_pairs(patching: xr.Dataset) -> None:
    panels = [axes for axes in draw(patching, Params()).figure.axes if axes.get_title()]
    assert [panel.get_title() for panel in panels] == ["Layer 0", "Layer 1", "Layer 2"]
    mean = patching["normalised_logit_difference"].mean("pair").values
    for panel, expected in zip(panels, mean, strict=True):
        patches, cls = (image.get_array() for image in panel.images)
        np.testing.assert_allclose(patches, expected[1:].reshape(2, 3))
        np.testing.assert_allclose(cls, [[expected[0]]])


@pytest.mark.parametrize(("direction", "centre"), [("denoising", 0.0), ("noising", 1.0)])
def test_colours_are_centred_on_no_effect(patching: xr.Dataset, direction: str, centre: float) -> None:
    plot = draw(patching.assign_attrs(direction=direction), Params())
    norms = [image.norm for axes in plot.figure.axes[:3] for image in axes.images]
    reach = abs(patching["normalised_logit_difference"].mean("pair") - centre).max().item()
    assert {(norm.vmin, norm.vmax) for norm in norms} == {(centre - reach, centre + reach)}


def test_no_panel_is_empty(patching: xr.Dataset) -> None:
    deep = xr.concat([patching.assign_coords(layer=patching["layer"] + 3 * n) for n in range(3)], "layer")
    for width, rows in (("one_column", 3), ("two_columns", 2)):
        plot = draw(deep.isel(layer=slice(8)), Params(width=width))
        panels = [axes for axes in plot.figure.axes if axes.get_title()]
        assert len(panels) == 8 == len(plot.figure.axes) - 1
        assert all(len(panel.images) == 2 for panel in panels)
        assert len({panel.get_subplotspec().rowspan.start for panel in panels}) == rows


def test_numbers_hold_mean_error_and_place(patching: xr.Dataset) -> None:
    found = patching_heatmap(patching, Params(), Job()).data
    assert found.sizes["point"] == 21
    at = found.isel(point=(found["layer"] == 1) & (found["patch_row"] == 1) & (found["patch_col"] == 0))
    pairs = patching["normalised_logit_difference"].sel(layer=1, token=4)
    assert at["token"].item() == 4
    assert at["normalised_logit_difference"].item() == pytest.approx(pairs.mean().item())
    error = at["normalised_logit_difference_standard_error"].item()
    assert error == pytest.approx(pairs.std(ddof=1).item() / 5**0.5)
    assert "from the clean run in the corrupted run. Mean over 5 pairs" in found.attrs["caption"]


def test_bad_data(patching: xr.Dataset) -> None:
    with pytest.raises(StepError, match="has no pair"):
        draw(patching.isel(pair=0, drop=True), Params())
    with pytest.raises(StepError, match="has no patch_row"):
        draw(patching.drop_vars("patch_row"), Params())
    with pytest.raises(StepError, match="'direction' is None, expected denoising or noising"):
        draw(patching.drop_attrs(), Params())


def test_tokens_lie_where_their_labels_say(patching: xr.Dataset) -> None:
    values = patching["logit_difference"].isel(pair=0, layer=0).copy(data=np.arange(7.0))
    shuffled = values.isel(token=[3, 0, 6, 1, 5, 2, 4])
    assert on_grid(shuffled).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert others(shuffled).values.tolist() == [0]


def by_head(patching: xr.Dataset) -> xr.Dataset:
    values = np.random.default_rng(4).uniform(-0.2, 1, (5, 2, 3, 4))
    return xr.Dataset(
        {"normalised_kl": (("pair", "site", "layer", "head"), values)},
        {"pair": range(5), "site": ["q", "z"], "layer": [0, 1, 2], "head": range(4)},
        {**patching.attrs, "site": ["q", "z"]},
    )


def test_heads_of_every_site(patching: xr.Dataset) -> None:
    heads = by_head(patching)
    plot = draw(heads, Params(metric="kl"))
    panels = [axes for axes in plot.figure.axes if axes.get_title()]
    assert [panel.get_title() for panel in panels] == ["q", "z"]
    for panel, site in zip(panels, ("q", "z"), strict=True):
        np.testing.assert_allclose(
            panel.images[0].get_array(), heads["normalised_kl"].sel(site=site).mean("pair")
        )
    assert "query or attention-weighted value of each layer, at one head" in plot.caption
    alone = draw(heads.isel(site=0, drop=True).assign_attrs(site="q"), Params(metric="kl"))
    assert len(alone.figure.axes) == 2


def test_frames_of_clips_have_panels_of_their_own(patching: xr.Dataset) -> None:
    frame = np.array([-1, 0, 0, 0, 1, 1, 1])
    row = np.array([-1, 0, 0, 0, 0, 0, 0])
    column = np.array([-1, 0, 1, 2, 0, 1, 2])
    clips = patching.assign_coords(
        patch_frame=("token", frame), patch_row=("token", row), patch_col=("token", column)
    )
    panels = [axes for axes in draw(clips, Params()).figure.axes if axes.get_title()]
    assert [panel.get_title() for panel in panels][:2] == ["Layer 0, frame 0", "Layer 0, frame 1"]
    mean = patching["normalised_logit_difference"].mean("pair").values
    assert [len(panel.images) for panel in panels] == [2, 1] * 3
    np.testing.assert_allclose(panels[0].images[0].get_array(), [mean[0, 1:4]])
    np.testing.assert_allclose(panels[1].images[0].get_array(), [mean[0, 4:]])


def test_pairs_without_anything_to_restore_are_left_out(patching: xr.Dataset) -> None:
    name = "normalised_logit_difference"
    lacking = patching.assign({name: patching[name].where(patching["pair"] != 2)})
    plot = draw(lacking, Params())
    patches = plot.figure.axes[0].images[0].get_array()
    expected = patching[name].isel(pair=[0, 1, 3, 4], layer=0).mean("pair").values
    np.testing.assert_allclose(patches, expected[1:].reshape(2, 3))
    assert "Mean over 4 pairs (1 more have two runs of the same value)" in plot.caption
    with pytest.raises(StepError, match="NaN for all pairs"):
        draw(patching.assign({name: patching[name] * np.nan}), Params())


def test_heads_and_tokens_at_once() -> None:
    sweep = schema.example(schema.Patching, cells=("head", "token"))
    mean = sweep["normalised_kl"].mean("pair")
    panels = [axes for axes in draw(sweep, Params(metric="kl")).figure.axes if axes.get_title()]
    places = [(layer, head) for layer in range(2) for head in range(2)]
    assert [panel.get_title() for panel in panels] == [f"Layer {la}, head {h}" for la, h in places]
    assert {panel.get_subplotspec().get_geometry()[:2] for panel in panels} == {(2, 2)}  # heads in a row
    for panel, (layer, head) in zip(panels, places, strict=True):
        expected = mean.sel(layer=layer, head=head)
        np.testing.assert_allclose(panel.images[0].get_array(), expected[1:].values.reshape(2, 3))
        np.testing.assert_allclose(panel.images[1].get_array(), [[expected[0]]])
    tables = [
        axes for axes in draw(sweep, Params(metric="kl", view="tokens")).figure.axes if axes.get_title()
    ]
    assert [table.get_title() for table in tables] == ["Head 0", "Head 1"]
    for head, table in enumerate(tables):
        np.testing.assert_allclose(table.images[0].get_array(), mean.sel(head=head))
    (chosen,) = (
        axes
        for axes in draw(sweep, Params(metric="kl", layers=[1], heads=[1])).figure.axes
        if axes.get_title()
    )
    np.testing.assert_allclose(chosen.images[0].get_array().ravel(), mean.sel(layer=1, head=1)[1:])
    with pytest.raises(StepError, match="no layer 2; the data has 0, 1"):
        draw(sweep, Params(layers=[2]))


def test_layers_by_tokens(patching: xr.Dataset) -> None:
    plot = draw(patching, Params(view="tokens"))
    table, bar = plot.figure.axes
    np.testing.assert_allclose(
        table.images[0].get_array(), patching["normalised_logit_difference"].mean("pair")
    )
    assert [text.get_text() for text in table.get_xticklabels()] == ["CLS", "6 patches"]
    assert [text.get_text() for text in table.get_yticklabels()] == ["0", "1", "2"]
    assert bar.get_xlabel().startswith("Normalised logit difference, n = 5 pairs")
    error = patching["normalised_logit_difference"].std("pair", ddof=1).max().item() / 5**0.5
    assert f"standard error at most {error:.2g}" in plot.caption


def test_frames_patched_as_wholes(patching: xr.Dataset) -> None:
    """Layers × frames, the tokens that lie in no frame as frame −1."""
    values = np.random.default_rng(4).uniform(-0.2, 1, (5, 3, 4))
    frames = xr.Dataset(
        {"normalised_kl": (("pair", "layer", "patch_frame"), values)},
        {"pair": range(5), "layer": [0, 1, 2], "patch_frame": [-1, 0, 1, 2]},
        {**patching.attrs, "together": "frame"},
    )
    plot = draw(frames, Params(metric="kl"))
    np.testing.assert_allclose(plot.figure.axes[0].images[0].get_array(), values.mean(0))
    assert [text.get_text() for text in plot.figure.axes[0].get_xticklabels()] == ["CLS", "0", "1", "2"]
    assert plot.figure.axes[0].get_xlabel() == "Frame"
    assert "at all tokens of one frame," in plot.caption
