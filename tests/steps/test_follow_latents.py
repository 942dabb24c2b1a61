from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from prisma_steps import schema
from prisma_steps.job import Job
from prisma_steps.step import StepError
from prisma_steps.steps import follow_latents as module
from prisma_steps.steps.follow_latents import Params, follow_latents
from tests.steps.test_rank_images import sparse

N_IMAGES, N_LATENTS = 6, 9
FRAMES = np.array([-1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])


@pytest.fixture
def dense() -> np.ndarray:
    random = np.random.default_rng(0)
    values = random.uniform(0.1, 2, (N_IMAGES, len(FRAMES), N_LATENTS))
    values[random.random(values.shape) < 0.7] = 0
    values[:, 0, 4] = 50  # CLS, which is in no frame
    values[:, :, 8] = 0
    return values.astype(np.float32)


@pytest.fixture
def codes(dense: np.ndarray) -> xr.Dataset:
    return sparse(dense).assign_coords(patch_frame=("token", FRAMES))


@pytest.fixture
def images() -> xr.Dataset:
    """More clips than the codes are of, in another order."""
    names = [f"image-{number}" for number in reversed(range(N_IMAGES + 2))]
    return xr.Dataset(
        {"pixels": (("image", "frame", "channel", "row", "column"), np.zeros((8, 3, 1, 2, 2), np.uint8))},
        coords={
            "image": names,
            "label": ("image", np.arange(8) % 2),
            "velocity_x": ("image", np.arange(8.0)),
            "class_name": ("class", ["left", "right"]),
        },
    )


@pytest.mark.parametrize("at_once", [2**24, 1])
def test_courses_are_the_highest_and_mean_of_each_frame(codes, images, dense, at_once, monkeypatch) -> None:
    monkeypatch.setattr(module, "DENSE", at_once)
    found = follow_latents(codes, images, Params(latents=[5, 0]), Job())
    schema.check(found, schema.TimeCourses)
    assert found["patch_frame"].values.tolist() == [0, 1, 2]
    for latent in (5, 0):
        for frame in range(3):
            of_frame = dense[:, frame == FRAMES, latent]
            cell = found.sel(latent=latent, patch_frame=frame)
            np.testing.assert_allclose(cell["highest_in_frame"], of_frame.max(1))
            # a float32 mean of four
            np.testing.assert_allclose(cell["mean_in_frame"], of_frame.mean(1), rtol=1e-6)


def test_clips_keep_what_is_known_of_them(codes, images) -> None:
    found = follow_latents(codes, images, Params(latents=[1]), Job())
    assert found["velocity_x"].values.tolist() == [7, 6, 5, 4, 3, 2]
    assert found["label"].values.tolist() == [1, 0, 1, 0, 1, 0]
    assert found["class_name"].values.tolist() == ["left", "right"]


@pytest.mark.parametrize("at_once", [2**24, 1])
def test_the_most_active_are_so_on_patches(codes, images, dense, at_once, monkeypatch) -> None:
    monkeypatch.setattr(module, "DENSE", at_once)
    found = follow_latents(codes, images, Params(n_latents=3), Job())
    total = dense[:, FRAMES >= 0].sum((0, 1))
    assert found["latent"].values.tolist() == np.argsort(-total)[:3].tolist()


def test_bad_data(codes, images) -> None:
    with pytest.raises(StepError, match="have no patch_frame: they are of still images"):
        follow_latents(codes.drop_vars("patch_frame"), images, Params(), Job())
    with pytest.raises(StepError, match="'image-0', which is not among the images"):
        follow_latents(codes, images.isel(image=slice(2)), Params(), Job())
    with pytest.raises(StepError, match="only 8 latents fire on patches"):
        follow_latents(codes, images, Params(n_latents=9), Job())
    with pytest.raises(StepError, match="no latent 70"):
        follow_latents(codes, images, Params(latents=[70]), Job())
