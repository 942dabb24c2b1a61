"""From pixels as they are stored, 0 to 255, to what a pretrained model takes.

The model's own image processor says how: the one of ``transformers`` that works with Pillow. Some exist for
torchvision alone, which is not used here; for them a processor with Pillow is set up alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import AutoImageProcessor, BitImageProcessorPil
from transformers.utils.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)

from prisma_steps.step import StepError

#: How images are made pixel values, where a model says it.
PREPROCESSOR = "preprocessor_config.json"

#: Where ``save_pretrained`` writes how images are prepared, and under which word in the file.
_PLACES = (
    ("processor_config.json", "image_processor"),
    ("processor_config.json", "video_processor"),
    ("video_preprocessor_config.json", None),
    (PREPROCESSOR, None),
)

_BILINEAR = 2
_VIDEOMAE = {
    "resample": _BILINEAR,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": IMAGENET_STANDARD_MEAN,
    "image_std": IMAGENET_STANDARD_STD,
}
_VIVIT = {**_VIDEOMAE, "size": {"shortest_edge": 256}, "rescale_factor": 1 / 127.5}
_IMAGENET = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}

#: Defaults of the processors that exist for torchvision alone, or that take clips and no frames.
_WITHOUT_PILLOW: Mapping[str, Mapping[str, Any]] = {
    # Resizes before it rounds, here Pillow rounds: about one grey level at most.
    "DINOv3ViTImageProcessor": {
        **_IMAGENET,
        "resample": _BILINEAR,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
    },
    "TimesformerVideoProcessor": {**_VIDEOMAE, **_IMAGENET},
    "VideoMAEImageProcessor": _VIDEOMAE,
    "VideoMAEVideoProcessor": _VIDEOMAE,
    "VivitImageProcessor": {**_VIVIT, "offset": True},
    "VivitVideoProcessor": {**_VIVIT, "offset": True},
    "VJEPA2VideoProcessor": {**_VIDEOMAE, **_IMAGENET, "crop_size": {"height": 256, "width": 256}},
}

#: What can be set of ``BitImageProcessorPil``, which resizes, cuts out the middle, rescales and normalises.
_SETTINGS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


class Preprocessing:
    """Prepares images, or the frames of clips, as a processor of ``transformers`` does.

    Attributes:
        processor: an image processor that works with Pillow.
        size: rows and columns of what it leaves.
    """

    def __init__(self, processor: Any) -> None:
        """Find the size that ``processor`` leaves.

        Raises:
            StepError: when that depends on the image.
        """
        self.processor = processor
        cut = getattr(processor, "do_center_crop", None)
        left = processor.crop_size if cut else processor.size if processor.do_resize else None
        if left is None or not (left.height and left.width):
            raise StepError(
                f"{PREPROCESSOR}: {type(processor).__name__} leaves images of no one size (do_resize "
                f"{processor.do_resize}, size {processor.size}, do_center_crop {cut}); expected a crop_size, "
                "or a size with height and width"
            )
        self.size = (int(left.height), int(left.width))

    def __call__(
        self, raw: UInt8[Tensor, "image *frame channel row column"]
    ) -> Float[Tensor, "image *frame channel row column"]:
        """What the model takes, float32, on the device of ``raw``; one channel is repeated to three.

        Images that have the size of what the processor leaves are neither resized nor cut.
        """
        raw = raw.expand(*raw.shape[:-3], 3, *raw.shape[-2:]) if raw.shape[-3] == 1 else raw
        if raw.shape[-2:] == self.size:
            scale, offset = (part.to(raw.device)[:, None, None] for part in self._affine)
            return raw * scale + offset
        pixels = self._processed(raw.flatten(0, -4).cpu().numpy())
        return torch.from_numpy(pixels).unflatten(0, raw.shape[:-3]).to(raw.device)

    @cached_property
    def _affine(self) -> tuple[Float[Tensor, " channel"], Float[Tensor, " channel"]]:
        """Scale and offset that each channel is rescaled and normalised with, from every grey level there is.

        Raises:
            StepError: when the processor does something else to the levels.
        """
        levels = np.arange(256, dtype=np.uint8)
        image = np.broadcast_to(levels.reshape(16, 16), (1, 3, 16, 16))
        table = self._processed(image, do_resize=False, do_center_crop=False)[0].reshape(3, 256)
        offset = table[:, :1].astype(float)
        scale = (table[:, 255:] - offset) / 255
        if not np.allclose(table, levels * scale + offset, atol=1e-5):
            raise StepError(f"{type(self.processor).__name__} does more to pixels than rescale and normalise")
        return torch.from_numpy(scale[:, 0]).float(), torch.from_numpy(offset[:, 0]).float()

    def _processed(
        self, images: UInt8[np.ndarray, "image channel row column"], **changes: bool
    ) -> Float[np.ndarray, "image channel row column"]:
        made = self.processor(
            list(images), input_data_format="channels_first", return_tensors="np", **changes
        )
        return np.asarray(made["pixel_values"], dtype=np.float32)


def load_preprocessing(folder: Path) -> Preprocessing | None:
    """How the images of the model in a ``save_pretrained`` folder are prepared; None where it does not say.

    Raises:
        StepError: when the file cannot be read, or its processor cannot be had without torchvision.
    """
    config = _configuration(folder)
    if config is None:
        return None
    name = _class_name(config)
    if name in _WITHOUT_PILLOW:
        return Preprocessing(_set_up_alike(name, config))
    try:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        raise StepError(f"{folder.name}: the image processor {name} cannot be opened: {error}") from error
    return Preprocessing(processor)


def plain_preprocessing(size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
    """Images are resized to ``size`` (rows, columns), divided by 255, less ``mean``, by ``std`` a channel."""
    rows, columns = size
    return Preprocessing(
        BitImageProcessorPil(
            size={"height": rows, "width": columns},
            do_center_crop=False,
            image_mean=list(mean),
            image_std=list(std),
        )
    )


def preprocessing_files(preprocessing: Preprocessing) -> Mapping[str, Callable[[Path], None]]:
    """A writer for the file that ``load_preprocessing`` reads. The same processor gives the same bytes."""
    text = json.dumps(preprocessing.processor.to_dict(), indent=2, sort_keys=True) + "\n"

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return {PREPROCESSOR: write}


def _configuration(folder: Path) -> Mapping[str, Any] | None:
    for name, word in _PLACES:
        file = folder / name
        if not file.exists():
            continue
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StepError(f"{folder.name}/{name} is no JSON: {error}") from error
        if word is None or word in told:
            return told if word is None else told[word]
    return None


def _class_name(config: Mapping[str, Any]) -> str:
    """The processor's class; older files name it a feature extractor, which is the same."""
    names = ("image_processor_type", "video_processor_type", "feature_extractor_type")
    named = str(next((config[name] for name in names if config.get(name)), ""))
    return named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")


def _set_up_alike(name: str, config: Mapping[str, Any]) -> BitImageProcessorPil:
    """A processor that does with Pillow what the class ``name`` does with torchvision, or with clips."""
    told = dict(_WITHOUT_PILLOW[name])
    told |= {key: value for key, value in config.items() if value is not None}
    if name == "VJEPA2VideoProcessor":
        # Whatever the file says of the size, as its class does.
        told["size"] = {"shortest_edge": int(_height(told["crop_size"]) * 256 / 224)}
    settings = {key: told[key] for key in _SETTINGS if key in told}
    if told.get("offset"):  # ViViT: pixels · rescale_factor − 1, before the mean is subtracted
        settings["image_mean"] = [value + 1 for value in told["image_mean"]]
    return BitImageProcessorPil(**settings)


def _height(size: int | Mapping[str, int]) -> int:
    return size if isinstance(size, int) else size["height"]
