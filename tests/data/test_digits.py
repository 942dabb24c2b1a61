from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from prisma_steps.data import digits


def test_digits_are_those_of_scikit_learn_on_a_scale_of_255():
    source, bunch = digits.source(), load_digits()
    every = np.arange(source.count)
    assert source.count == 1797
    assert source.class_names == tuple("0123456789")
    pixels = source.pixels(every)
    assert pixels.dtype == np.uint8 and pixels.shape == (1797, *source.shape)
    np.testing.assert_allclose(pixels[:, 0] / 255, bunch.images / 16, atol=0.5 / 255)
    np.testing.assert_array_equal(source.coords(every)["label"], bunch.target)
    assert source.coords(np.array([7]))["image"] == ["digits-0007"]
