from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

from prisma_steps import schema
from prisma_steps.figures.rollout_maps import Params, rollout_maps
from prisma_steps.figures.token_maps import shaded
from prisma_steps.job import Job
from prisma_steps.step import StepError

draw = rollout_maps.__wrapped__
ATTENTION, IMAGES = schema.example(schema.Attention), schema.example(schema.Images)


def test_a_row_of_layers_for_every_image() -> None:
    plot = draw(ATTENTION, IMAGES, Params(query=[1, 0]))
    *panels, bar = plot.figure.axes
    assert [panel.get_title() for panel in panels] == ["Image", "Layer 0", "Layer 1"] * 3
    rollout = ATTENTION["attention_rollout"].sel(query_token=4)  # CLS, three patches above, then this
    strongest = float(rollout[..., 1:].max())
    for place, image in enumerate("abc"):
        pixels = np.repeat(IMAGES["pixels"].sel(image=image).values[0][..., None], 3, -1)
        for layer in (0, 1):
            patches = rollout.sel(image=image, layer=layer)[1:].values.reshape(2, 3)
            expected = shaded(mpl.colormaps["Blues"](patches / strongest)[..., :3], pixels)
            np.testing.assert_allclose(panels[3 * place + 1 + layer].images[0].get_array(), expected)
    assert bar.get_xlabel() == "Attention rollout to the patch (all tokens sum to 1)"


def test_numbers_are_the_row_of_the_query() -> None:
    found = rollout_maps(ATTENTION, IMAGES, Params(image="b"), Job()).data
    expected = ATTENTION["attention_rollout"].sel(image="b", query_token=0)
    np.testing.assert_array_equal(found["attention_rollout"], expected.values.ravel())


def test_bad_data() -> None:
    with pytest.raises(StepError, match="has no attention_rollout. Name images in chosen of describe_att"):
        draw(ATTENTION.drop_vars("attention_rollout"), IMAGES, Params())
    with pytest.raises(StepError, match=r"rollout_maps: no token is the query \[2, 0\]"):
        draw(ATTENTION, IMAGES, Params(query=[2, 0]))
