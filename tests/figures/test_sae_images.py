"""Figures of dictionaries on images and clips: top images, splicing, time courses; and their likeness."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps.figures.decoder_similarity import Params as SimilarityParams
from prisma_steps.figures.decoder_similarity import decoder_similarity
from prisma_steps.figures.heat import OPACITY, over_image
from prisma_steps.figures.latents_over_time import Params as TimeParams
from prisma_steps.figures.latents_over_time import latents_over_time
from prisma_steps.figures.splicing import Params as SplicingParams
from prisma_steps.figures.splicing import splicing
from prisma_steps.figures.top_images import Params as TopParams
from prisma_steps.figures.top_images import top_images
from prisma_steps.job import Job
from prisma_steps.schema import label
from prisma_steps.step import StepError

from .conftest import tokens


@pytest.fixture
def ranking() -> xr.Dataset:
    """3 latents, their 2 best of the images a, b and c, and one at a quantile; the last fires in one only."""
    random = np.random.default_rng(9)
    data = {}
    for prefix, dim, n in (("top", "rank", 2), ("quantile", "quantile", 1)):
        heat = random.uniform(0.1, 2, (3, n, 7))
        data[f"{prefix}_heat_map"] = (("latent", dim, "token"), heat)
        data[f"{prefix}_activation"] = (("latent", dim), heat.max(-1))
        data[f"{prefix}_image"] = (
            ("latent", dim),
            np.array([["a", "b"], ["c", "a"], ["b", ""]], object)[:, :n],
        )
    coords = {"latent": [4, 7, 30], "rank": [0, 1], "quantile": [0.5], "token": range(7), **tokens(2, 3)}
    found = xr.Dataset(data, coords)
    found["top_heat_map"][2, 1] = np.nan
    found["top_activation"][2, 1] = np.nan
    return found


def test_heat_hides_the_image_where_it_is_highest() -> None:
    pixels = np.full((4, 6, 1), 255)
    drawn = over_image(pixels, np.array([[0.0, 2.0, np.nan], [0.0, 0.5, 0.0]]), 2.0)
    assert drawn.shape == (4, 6, 3)
    np.testing.assert_allclose(drawn[:2, :2], 1)  # nothing fires: the image as it is
    np.testing.assert_allclose(drawn[:2, 4:], 1)
    import matplotlib as mpl

    top = np.array(mpl.colormaps["inferno"](1.0)[:3])
    np.testing.assert_allclose(drawn[0, 2], (1 - OPACITY) + OPACITY * top)
    # The map goes towards its colour monotonously: less of white is left where more fires.
    assert drawn[3, 2, 2] < 1


def test_rows_are_latents_and_columns_ranks(ranking: xr.Dataset, images: xr.Dataset) -> None:
    plot = top_images.__wrapped__(ranking, images, TopParams())
    cells = plot.figure.axes[:-1]  # the last is the colour bar
    assert len(cells) == 6
    assert [len(cell.images) for cell in cells] == [1, 1, 1, 1, 1, 0]
    expected = [f"{value:.3g}" for value in ranking["top_activation"].values.ravel()[:5]]
    assert [cell.get_xlabel() for cell in cells[:5]] == expected
    assert cells[5].texts[0].get_text() == "fires in\nno more"
    texts = [text.get_text() for text in plot.figure.texts]
    assert {"4", "7", "30", "rank 1", "rank 2"} <= set(texts)
    assert plot.figure.axes[-1].get_xlabel() == "Activation on the patch / highest of the row"
    found = top_images(ranking, images, TopParams(), Job()).data
    assert found["image"].values.tolist() == ["a", "b", "c", "a", "b", ""]


def test_images_at_quantiles_and_named_latents(ranking: xr.Dataset, images: xr.Dataset) -> None:
    plot = top_images.__wrapped__(ranking, images, TopParams(by="quantile", latents=[30, 4]))
    assert plot.numbers["latent"].tolist() == [30, 4]
    assert plot.numbers["image"].tolist() == ["b", "a"]
    with pytest.raises(
        StepError, match="latent 5 is not in the ranking, which has 3 latents such as 4, 7, 30"
    ):
        top_images.__wrapped__(ranking, images, TopParams(latents=[5]))
    with pytest.raises(StepError, match="image 'a', which is not in the images"):
        top_images.__wrapped__(ranking, images.sel(image=["b"]), TopParams())
    with pytest.raises(StepError, match="top_images: the data has no patch_row"):
        top_images.__wrapped__(ranking.drop_vars("patch_row"), images, TopParams())


def of_clips(data: xr.Dataset) -> xr.Dataset:
    """The 2 × 3 patches taken as two frames of 1 × 3."""
    frame = np.array([-1, 0, 0, 0, 1, 1, 1])
    row = np.array([-1, 0, 0, 0, 0, 0, 0])
    return data.assign_coords(patch_frame=("token", frame), patch_row=("token", row))


def test_clips_show_the_frame_that_fires_most_or_all(ranking: xr.Dataset) -> None:
    pixels = np.zeros((3, 4, 1, 8, 12), "uint8")
    pixels[:, 2:] = 255  # the second tubelet is white
    clips = xr.Dataset(
        {"pixels": (("image", "frame", "channel", "row", "column"), pixels)},
        coords={"image": ["a", "b", "c"]},
    )
    given = of_clips(ranking).sel(latent=[4])
    given["top_heat_map"][0, 0] = [0, 1, 0, 0, 0, 0, 2]
    cells = top_images.__wrapped__(given, clips, TopParams()).figure.axes
    np.testing.assert_allclose(cells[0].images[0].get_array()[0, 0], 1)
    strip = (
        top_images.__wrapped__(given, clips, TopParams(frames="strip")).figure.axes[0].images[0].get_array()
    )
    assert strip.shape[1] == 2 * 12 + 1
    assert strip[0, 5].max() == 0
    np.testing.assert_allclose(strip[0, 14], 1)


@pytest.fixture
def spliced() -> xr.Dataset:
    random = np.random.default_rng(10)
    data = {
        name: (("image", "token"), random.uniform(1, 3, (2, 7)))
        for name in ("value_norm", "reconstruction_norm", "error_norm")
    }
    data["cls_attention"] = (
        ("run", "image", "head", "key_token"),
        random.dirichlet(np.ones(7), size=(3, 2, 2)),
    )
    for name in ("logit", "probability"):
        data[name] = (("run", "image", "class"), random.dirichlet(np.ones(4), size=(3, 2)))
    coords = {
        "run": ["clean", "reconstruction", "error_term"],
        "image": ["a", "b"],
        "class_name": ("class", ["cat", "dog", "newt", "heron"]),
        "site": "resid_post",
        "layer": 0,
        **tokens(2, 3),
    }
    return xr.Dataset(data, coords, {"attention_layer": 1})


def test_maps_and_bars_are_the_values_before_and_after(spliced: xr.Dataset, images: xr.Dataset) -> None:
    plot = splicing.__wrapped__(spliced, images, SplicingParams(image="b", n_classes=3))
    panels = {axes.get_title(): axes for axes in plot.figure.axes if axes.get_title()}
    assert list(panels) == [
        "Image", "‖x‖", "‖x̂‖", "‖x − x̂‖", "CLS attention,\nclean", "CLS attention,\nreconstruction",
    ]  # fmt: skip
    shown = {"‖x‖": "value_norm", "‖x̂‖": "reconstruction_norm", "‖x − x̂‖": "error_norm"}
    for title, name in shown.items():
        expected = spliced[name].sel(image="b").values
        np.testing.assert_allclose(panels[title].images[0].get_array(), expected[1:].reshape(2, 3))
        assert panels[title].get_xlabel() == f"CLS {expected[0]:.3g}"
    after = spliced["cls_attention"].sel(image="b", run="reconstruction").mean("head")
    drawn = panels["CLS attention,\nreconstruction"].images[0].get_array()
    np.testing.assert_allclose(drawn, after.values[1:].reshape(2, 3))
    bars = next(axes for axes in plot.figure.axes if axes.get_ylabel() == "Probability")
    clean = spliced["probability"].sel(image="b", run="clean").values
    order = np.argsort(-clean)[:3]
    np.testing.assert_allclose([bar.get_height() for bar in bars.containers[0]], clean[order])
    names = [text.get_text() for text in bars.get_xticklabels()]
    assert names == [str(spliced["class_name"].values[number]) for number in order]


def test_what_is_not_compared_has_no_panel(spliced: xr.Dataset, images: xr.Dataset) -> None:
    plot = splicing.__wrapped__(spliced.drop_vars("cls_attention"), images, SplicingParams())
    assert not [axes for axes in plot.figure.axes if "attention" in axes.get_title()]
    with pytest.raises(StepError, match="splicing: the data has no error_norm"):
        splicing.__wrapped__(spliced.drop_vars("error_norm"), images, SplicingParams())
    with pytest.raises(StepError, match="head is 2, and the block has heads 0 to 1"):
        splicing.__wrapped__(spliced, images, SplicingParams(head=2))
    with pytest.raises(StepError, match="splicing: no image 'z'"):
        splicing.__wrapped__(spliced, images, SplicingParams(image="z"))


def test_of_a_clip_one_frame_is_shown(spliced: xr.Dataset) -> None:
    clips = xr.Dataset(
        {"pixels": (("image", "frame", "channel", "row", "column"), np.zeros((2, 4, 1, 4, 12), "uint8"))},
        coords={"image": ["a", "b"]},
    )
    plot = splicing.__wrapped__(of_clips(spliced), clips, SplicingParams(frame=1))
    drawn = {axes.get_title(): axes for axes in plot.figure.axes}["‖x‖"].images[0].get_array()
    np.testing.assert_allclose(drawn, spliced["value_norm"].sel(image="a").values[None, 4:])
    with pytest.raises(StepError, match="frame is 2, and the clip has 2"):
        splicing.__wrapped__(of_clips(spliced), clips, SplicingParams(frame=2))


@pytest.fixture
def courses() -> xr.Dataset:
    random = np.random.default_rng(11)
    dims = ("latent", "image", "patch_frame")
    found = xr.Dataset(
        {name: (dims, random.uniform(0, 2, (5, 8, 3))) for name in ("highest_in_frame", "mean_in_frame")},
        coords={
            "latent": [3, 9, 11, 20, 21],
            "image": [f"clip-{number}" for number in range(8)],
            "patch_frame": [0, 1, 2],
            "label": ("image", [0, 1, 1, 0, 1, 1, 1, 0]),
            "velocity_x": ("image", [-2.0, 2.0, 0.0, -2.0, 2.0, 0.0, 2.0, -2.0]),
            "class_name": ("class", ["left", "right"]),
        },
    )
    return label(found)


def test_lines_are_means_over_the_clips_of_a_class(courses: xr.Dataset) -> None:
    plot = latents_over_time.__wrapped__(courses, TimeParams(latents=[9, 3]))
    assert [axes.get_title() for axes in plot.figure.axes] == ["Latent 9", "Latent 3"]
    for panel, latent in zip(plot.figure.axes, (9, 3), strict=True):
        for number, line in enumerate(panel.lines):
            clips = courses["highest_in_frame"].sel(latent=latent, image=courses["label"] == number)
            np.testing.assert_allclose(line.get_ydata(), clips.mean("image"))
            error = clips.std("image", ddof=1).values / clips.sizes["image"] ** 0.5
            band = panel.collections[number].get_paths()[0].vertices
            at_one = band[band[:, 0] == 1][:, 1]
            assert np.ptp(at_one) == pytest.approx(2 * error[1])
    texts = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert texts == ["left (n = 3)", "right (n = 5)"]
    assert plot.figure.get_supxlabel() == "Frame on the patch grid (tubelet)"


def test_kinds_of_clips_by_velocity_or_none(courses: xr.Dataset) -> None:
    plot = latents_over_time.__wrapped__(courses, TimeParams(by="velocity_x", over_patches="mean"))
    assert plot.figure.legends[0].get_title().get_text() == "Sprite velocity to the right (pixel/frame)"
    texts = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert texts == ["-2 (n = 3)", "0 (n = 2)", "2 (n = 3)"]
    one = latents_over_time.__wrapped__(courses, TimeParams(by=None)).figure.axes[0]
    np.testing.assert_allclose(one.lines[0].get_ydata(), courses["highest_in_frame"][0].mean("image"))


def test_courses_that_are_not_there(courses: xr.Dataset) -> None:
    with pytest.raises(StepError, match="nothing is known of clips by the name 'colour'; there is"):
        latents_over_time.__wrapped__(courses, TimeParams(by="colour"))
    with pytest.raises(StepError, match="latent 4 was not followed; there are 3, 9"):
        latents_over_time.__wrapped__(courses, TimeParams(latents=[4]))
    with pytest.raises(StepError, match="latents_over_time: the data has no patch_frame"):
        latents_over_time.__wrapped__(courses.isel(patch_frame=0, drop=True), TimeParams())


@pytest.fixture
def similarity() -> xr.Dataset:
    random = np.random.default_rng(12)
    cosine = random.uniform(-0.1, 1, (6, 4))
    first, second = cosine.max(1), cosine.max(0)
    return xr.Dataset(
        {
            "cosine_map": (("first_cell", "second_cell"), cosine),
            "first_max_cosine": ("first_latent", first),
            "second_max_cosine": ("second_latent", second),
            "first_matched_share": (first > 0.7).mean(),
            "second_matched_share": (second > 0.7).mean(),
        },
        attrs={"threshold": 0.7, "itself": 0},
    )


@pytest.mark.parametrize("width", ["one_column", "two_columns"])
def test_map_and_histogram_hold_all_latents(similarity: xr.Dataset, width: str) -> None:
    plot = decoder_similarity.__wrapped__(similarity, SimilarityParams(width=width, first_name="seed 0"))
    panel, histogram = plot.figure.axes[:2]
    np.testing.assert_allclose(panel.images[0].get_array(), similarity["cosine_map"].clip(0, 1))
    assert panel.get_ylabel() == "Latent of seed 0 (ordered)"
    bins = plot.numbers[plot.numbers["panel"] == "histogram"]
    assert bins["first_share_of_latents"].sum() == pytest.approx(100)
    assert bins["second_share_of_latents"].sum() == pytest.approx(100)
    matched = 100 * float(similarity["first_matched_share"])
    assert histogram.get_legend().get_texts()[0].get_text() == f"seed 0: {matched:.0f} % matched"
    assert "6, the second: 4 latents" in plot.caption


def test_one_dictionary_has_one_line(similarity: xr.Dataset) -> None:
    same = similarity.assign_attrs(itself=1)
    plot = decoder_similarity.__wrapped__(same, SimilarityParams())
    assert len(plot.figure.axes[1].get_legend().get_texts()) == 1
    with pytest.raises(StepError, match="decoder_similarity: the data has no cosine_map"):
        decoder_similarity.__wrapped__(similarity.drop_vars("cosine_map"), SimilarityParams())
