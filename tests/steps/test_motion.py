"""Known answers on clips: the direction of a sprite is in several frames together, its start in the first.

The clips start on a lattice of places that they never leave, so that each frame by itself shows the same set
of images in every direction. Whatever a model answers to one frame alone, the probability of the right
direction is then 1/4 on average: not about 1/4, but to rounding. Patching that lets anything of another frame
through would raise it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr

from prisma_steps.data import dsprites
from prisma_steps.data.moving_sprites import DIRECTIONS, source
from prisma_steps.job import Job
from prisma_steps.step import Artifact
from prisma_steps.steps.load_images import Params as ImageParams
from prisma_steps.steps.load_images import load_images
from prisma_steps.steps.pair_images import Params as PairParams
from prisma_steps.steps.pair_images import pair_images
from prisma_steps.steps.patch_activations import Params, patch_activations
from prisma_steps.steps.train_vit import Params as TrainingParams
from prisma_steps.steps.train_vit import train_vit
from tests.artifacts import left

#: Three frames, 8 places apart, of 32 round the torus: a lattice of 4 × 4 places is never left.
N_FRAMES, SPEED = 3, 8

#: Of probabilities in float32, of a few hundred runs.
ROUNDING = 1e-5


class Trained(NamedTuple):
    """A model of clips, and clips on the lattice."""

    model: Artifact
    clips: xr.Dataset


def on_lattice(classes: str, moving: bool = True) -> xr.Dataset:
    """Of some sprites, every start on the lattice in every direction."""
    x, y = np.arange(0, 32, SPEED), np.arange(4, 32, SPEED)
    sprites = [(shape, 5, 7 * turn) for shape in range(3) for turn in range(2)]
    starts = dsprites.index(np.array([(*sprite, a, b) for sprite in sprites for a in x for b in y]))
    numbers = (np.arange(len(DIRECTIONS))[:, None] * dsprites.COUNT + starts).reshape(-1)
    drawn = source(N_FRAMES, [SPEED], moving, classes)
    coords: dict[str, Any] = {name: ("image", values) for name, values in drawn.coords(numbers).items()}
    coords["class_name"] = ("class", list(drawn.class_names or ()))
    dims = ("image", "frame", "channel", "row", "column")
    return xr.Dataset({"pixels": (dims, drawn.pixels(numbers))}, coords)


def trained(classes: str, epochs: int, folder: Path) -> Trained:
    """A 2-layer toy ViT, each of whose patches lies in one frame."""
    asked = {"n_frames": N_FRAMES, "speeds": [SPEED], "n_images": 4000, "classes": classes}
    clips = load_images(ImageParams(dataset="moving_sprites", **asked), Job()).load()
    small = {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_mlp": 128, "patch_size": 16}
    schedule = {"batch_size": 64, "learning_rate": 2e-3, "warmup": 30, "epochs": epochs}
    return Trained(
        left(train_vit(clips, TrainingParams(**small, **schedule), Job()), folder), on_lattice(classes)
    )


@pytest.fixture(scope="module")
def of_direction(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained("direction", 8, tmp_path_factory.mktemp("direction"))


@pytest.fixture(scope="module")
def of_start(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained("start", 2, tmp_path_factory.mktemp("start"))


def probability(model: Artifact, clips: xr.Dataset, together: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Of the right class, when frames of a clip are put into one without a sprite; and of whole clips."""
    black = {"pairing": "masked_patches", "patches": 1.0, "fill": 0, "only_correct": False}
    pairs = pair_images(model, clips, PairParams(n_pairs=clips.sizes["image"], **black), Job())
    params = Params(together=together, layers=[0])
    found = patch_activations(model, clips, pairs, params, Job()).isel(layer=0)
    return found["probability"].mean("pair"), found["clean_probability"].mean("pair")


def shares_by_frame(trained: Trained) -> xr.DataArray:
    """Of the effect of tokens, one at a time, summed over each frame, in clips of two classes."""
    pairs = pair_images(*trained, PairParams(n_pairs=100), Job())
    found = patch_activations(*trained, pairs, Params(layers=[0]), Job()).isel(layer=0)
    effect = found["normalised_logit_difference"].mean("pair").groupby("patch_frame").sum()
    np.testing.assert_allclose(effect.sel(patch_frame=-1), 0, atol=1e-4)  # CLS has seen nothing yet
    return effect.sel(patch_frame=slice(0, None)) / effect.sum()


def test_no_frame_alone_tells_the_direction_and_several_do(of_direction: Trained) -> None:
    alone, clean = probability(*of_direction, "frame")
    np.testing.assert_allclose(alone, 1 / 4, atol=ROUNDING)
    so_far, _ = probability(*of_direction, "frames_so_far")
    np.testing.assert_allclose(so_far.sel(patch_frame=[-1, 0]), 1 / 4, atol=ROUNDING)
    np.testing.assert_allclose(so_far.sel(patch_frame=N_FRAMES - 1), clean, atol=ROUNDING)
    assert clean > 0.7 and so_far.sel(patch_frame=1) > 0.35


def test_the_first_frame_alone_tells_the_start(of_start: Trained) -> None:
    alone, clean = probability(*of_start, "frame")
    assert clean > 0.7 and alone.sel(patch_frame=0) > 0.9 * clean
    assert (alone.sel(patch_frame=slice(1, None)) < 0.4).all()


def test_the_direction_is_not_there_in_clips_that_stand_still(of_direction: Trained) -> None:
    still = on_lattice("direction", moving=False)
    for together in ("frame", "frames_so_far"):
        found, clean = probability(of_direction.model, still, together)
        np.testing.assert_allclose([*found, clean], 1 / 4, atol=ROUNDING)


def test_effects_of_patches_are_spread_over_frames_or_lie_in_one(
    of_direction: Trained, of_start: Trained
) -> None:
    assert shares_by_frame(of_direction).max() < 0.6
    assert shares_by_frame(of_start).sel(patch_frame=0) > 0.75
