"""What a model is given is what its own image processor makes of an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
import xarray as xr
from PIL import Image

from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.inputs import InputError
from prisma_steps.models.loading import load_model
from prisma_steps.models.preprocessing import Preprocessing, load_preprocessing, preprocessing_files
from prisma_steps.step import Artifact, StepError
from tests.models.families import MAKERS, make

PROCESSORS = [
    hf.ViTImageProcessorPil(size={"height": 8, "width": 8}),
    hf.CLIPImageProcessorPil(size={"shortest_edge": 10}, crop_size={"height": 8, "width": 8}),
    hf.SiglipImageProcessorPil(size={"height": 8, "width": 12}, resample=3),
    hf.BeitImageProcessorPil(size={"height": 10, "width": 10}, crop_size=8, do_center_crop=True),
    hf.DeiTImageProcessorPil(size={"height": 9, "width": 9}, crop_size=8, do_normalize=False),
    hf.BitImageProcessorPil(size={"shortest_edge": 9}, crop_size={"height": 8, "width": 8}),
]


def raw(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def written(folder: Path, config: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
def test_images_are_prepared_as_the_processor_does(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    prepare = load_preprocessing(tmp_path)
    assert prepare is not None
    images = raw(3, 3, 14, 17)
    pillow = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    expected = processor(pillow, return_tensors="pt")["pixel_values"]
    assert torch.equal(prepare(images), expected) and expected.shape[-2:] == prepare.size
    fitting = raw(3, 3, *prepare.size)
    uncut = processor(list(fitting.numpy()), do_resize=False, do_center_crop=False, return_tensors="pt")
    # Two roundings of float32 at values up to 2.7.
    torch.testing.assert_close(prepare(fitting), uncut["pixel_values"], rtol=0, atol=1e-6)
    assert prepare(fitting).dtype == prepare(images).dtype == torch.float32


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
def test_a_processor_is_opened_as_it_was_saved(processor, tmp_path):
    images = raw(2, 3, 14, 17)
    for name, write in preprocessing_files(Preprocessing(processor)).items():
        write(tmp_path / name)
        write(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / name).read_bytes()
    prepare = load_preprocessing(tmp_path)
    assert prepare is not None and torch.equal(prepare(images), Preprocessing(processor)(images))


def test_a_grey_image_is_repeated():
    prepare = Preprocessing(PROCESSORS[0])
    for size in (8, 11):
        grey = raw(2, 1, size, size)
        assert torch.equal(prepare(grey), prepare(grey.repeat(1, 3, 1, 1)))


CLIPS = {
    "VideoMAEImageProcessor": (224, 224, [0.5] * 3, [0.5] * 3),
    "VideoMAEFeatureExtractor": (224, 224, [0.5] * 3, [0.5] * 3),
    "TimesformerVideoProcessor": (224, 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "VJEPA2VideoProcessor": (292, 256, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


@pytest.mark.parametrize("name", CLIPS)
def test_frames_of_clips_are_prepared_with_pillow_and_arithmetic(name, tmp_path):
    edge, crop, mean, std = CLIPS[name]
    kind = "feature_extractor_type" if name.endswith("Extractor") else "video_processor_type"
    prepare = load_preprocessing(written(tmp_path, {kind: name}, "video_preprocessor_config.json"))
    assert prepare is not None and prepare.size == (crop, crop)
    clips = raw(2, 2, 3, 60, 80)
    found = prepare(clips)
    assert found.shape == (2, 2, 3, crop, crop)
    frame = Image.fromarray(clips[1, 0].permute(1, 2, 0).numpy())
    resized = frame.resize((int(edge * 80 / 60), edge), Image.Resampling.BILINEAR)
    top, left = (edge - crop) // 2, (int(edge * 80 / 60) - crop) // 2
    cut = np.asarray(resized)[top : top + crop, left : left + crop] / 255
    expected = torch.from_numpy(((cut - mean) / std).transpose(2, 0, 1)).float()
    torch.testing.assert_close(found[1, 0], expected, rtol=0, atol=1e-6)


def test_vjepa2_resizes_by_its_crop_whatever_the_file_says(tmp_path):
    told = {"video_processor_type": "VJEPA2VideoProcessor", "size": {"shortest_edge": 99}, "crop_size": 16}
    prepare = load_preprocessing(written(tmp_path, told))
    assert prepare is not None and prepare.size == (16, 16)
    assert prepare.processor.size.shortest_edge == int(16 * 256 / 224)


@pytest.mark.parametrize("offset", [True, False])
def test_vivit_is_prepared_as_its_processor_does(offset, tmp_path):
    processor = hf.VivitImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, offset=offset
    )
    processor.save_pretrained(tmp_path)
    prepare = load_preprocessing(tmp_path)
    assert prepare is not None
    clips = raw(2, 4, 3, 30, 40)
    videos = [[frame.permute(1, 2, 0).numpy() for frame in clip] for clip in clips]
    expected = processor(videos, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepare(clips), expected.float(), rtol=0, atol=1e-6)


def test_dinov3_is_resized_to_half_a_grey_level(tmp_path):
    told = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 12, "width": 12}}
    prepare = load_preprocessing(written(tmp_path, told))
    assert prepare is not None
    images = raw(2, 3, 30, 40)
    scaled = torch.nn.functional.interpolate(
        images / 255, (12, 12), mode="bilinear", antialias=True, align_corners=False
    )
    mean, std = (
        torch.tensor(prepare.processor.__dict__[name])[:, None, None] for name in ("image_mean", "image_std")
    )
    # Pillow rounds each of its two passes to a grey level.
    assert ((prepare(images) - (scaled - mean) / std) * std * 255).abs().max() <= 1.01


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"image_processor_type": "NoSuchImageProcessor"}, "NoSuchImageProcessor cannot be opened"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 8}}, "no one size"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "no one size"),
    ],
)
def test_a_processor_that_cannot_be_used_is_refused(told, message, tmp_path):
    with pytest.raises(StepError, match=message):
        load_preprocessing(written(tmp_path, told))
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(StepError, match="is no JSON"):
        load_preprocessing(tmp_path)


def test_a_folder_without_a_processor_says_so(tmp_path):
    assert load_preprocessing(tmp_path) is None


def test_without_a_processor_pixels_are_divided():
    model, images = make("toy"), raw(2, 2, 8, 8)
    assert torch.equal(model.preprocess(images), images.float() / 255)


def test_the_size_that_the_processor_leaves_is_that_of_the_input(focus_vit):
    model = load_model(Artifact(xr.Dataset(), focus_vit))
    assert model.input_shape == (3, 224, 224) and model.configured_shape == (3, 518, 518)
    assert len(model.token_coords()["token_kind"]) == 1 + 16**2
    pixels = model.preprocess(raw(1, 3, 40, 32))
    assert model.read(pixels, ["resid_pre"], [0])["resid_pre", 0].shape == (1, 257, 384)
    image = Image.fromarray(raw(3, 40, 32).permute(1, 2, 0).numpy())
    expected = hf.AutoImageProcessor.from_pretrained(focus_vit, backend="pil")(image, return_tensors="pt")
    assert torch.equal(model.preprocess(raw(3, 40, 32)[None]), expected["pixel_values"])


def still(n_channels: int, prepared: bool) -> HookedViT:
    config = hf.ViTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=20, image_size=8,
        patch_size=4, num_channels=n_channels,
    )  # fmt: skip
    return HookedViT(hf.ViTModel(config), preprocessing=Preprocessing(PROCESSORS[0]) if prepared else None)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (
            still(3, True),
            (4, 3, 8, 8),
            "clips of 4 frames of 3 .*; the model takes still images of 1 or 3 .* any",
        ),
        (still(3, True), (2, 8, 8), "still images of 2 channels .*takes still images of 1 or 3 channels"),
        (still(3, False), (3, 9, 8), "9 × 8 pixels; .* takes still images of 3 channels and 8 × 8 pixels"),
        (still(3, False), (1, 8, 8), "of 1 channels .* takes still images of 3 channels"),
        (HookedViT(MAKERS["videomae"]()), (2, 8, 8), "these are still images .* takes clips of 4 frames"),
        (HookedViT(MAKERS["videomae"]()), (2, 2, 8, 8), "these are clips of 2 frames .* takes clips of 4"),
    ],
)
def test_images_that_a_model_is_not_made_for_are_refused(model, shape, message):
    with pytest.raises(InputError, match=message):
        model.preprocess(torch.zeros(1, *shape, dtype=torch.uint8))
