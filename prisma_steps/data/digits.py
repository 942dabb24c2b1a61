"""Handwritten digits (Alpaydin and Kaynak 1998) as scikit-learn ships them: 1,797 images, 8 × 8 pixels."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from prisma_steps.data.source import ImageSource


def source() -> ImageSource:
    """The digits in their published order; intensities 0 to 16 become 0 to 255."""
    bunch: Bunch = load_digits(return_X_y=False)  # pyright: ignore[reportAssignmentType]
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return ImageSource(
        count=len(pixels),
        shape=(1, 8, 8),
        class_names=tuple(str(name) for name in bunch.target_names),
        coords=lambda index: {
            "image": np.array([f"digits-{number:04d}" for number in index]),
            "label": bunch.target[index],
        },
        pixels=lambda index: pixels[index],
    )
