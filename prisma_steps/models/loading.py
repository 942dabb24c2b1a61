"""Models on disk as transformers writes them: weights as safetensors, the configuration beside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from prisma_steps.models.heads import load_head
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.preprocessing import PREPROCESSOR, load_preprocessing, plain_preprocessing
from prisma_steps.models.toy_vit import ToyViT
from prisma_steps.step import Artifact, StepError

#: Mean and standard deviation of the pixels, divided by 255, one number each a channel.
Normalisation: TypeAlias = tuple[Sequence[float], Sequence[float]]

#: Channels that pretrained models are prepared for. With others, images are taken as pixels / 255.
RGB = 3

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

#: Model classes that hold more than a vision model, and the class that holds its vision model alone.
_VISION_PART = {
    "CLIPModel": "CLIPVisionModelWithProjection",
    "SiglipModel": "SiglipVisionModel",
}

# Its warnings repeat what is checked here, and its bars would draw over ours.
set_verbosity_error()
disable_progress_bar()


def checkpoint_name(training_step: int) -> str:
    """The file of the weights that were kept after so many optimiser steps, beside the last ones."""
    return f"checkpoint-{training_step}.safetensors"


def model_files(model: Any) -> Mapping[str, Callable[[Path], None]]:
    """A writer for each file of a ``Model`` artifact. The same weights give the same bytes."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = {**model.config.to_diff_dict(), "architectures": [type(model).__name__]}
    config.pop("transformers_version", None)  # recorded in the manifest; here it would change the bytes
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {
        WEIGHTS: lambda path: save_file(weights, path, metadata={"format": "pt"}),
        CONFIG: lambda path: _write(text, path),
    }


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def same_files(folder: Path) -> Mapping[str, Callable[[Path], None]]:
    """A writer for each file that makes up the model in ``folder``, which leaves that file again."""
    names = [name for name in (WEIGHTS, CONFIG, PREPROCESSOR) if (folder / name).exists()]
    return {name: same_file(folder / name) for name in names}


def same_file(source: Path) -> Callable[[Path], None]:
    """A writer that leaves ``source`` again: a hard link where the disk allows one, else a copy."""

    def write(path: Path) -> None:
        try:
            os.link(source, path)
        except OSError:  # another disk, or one without hard links; what is wrong otherwise, the copy tells
            shutil.copyfile(source, path)

    return write


def load_model(artifact: Artifact, device: str = "cpu") -> HookedViT:
    """The model of a ``Model`` artifact, in evaluation mode, its parameters without gradients.

    Raises:
        StepError: when the configuration is of no known model, or the weights do not fit it.
    """
    vit = open_folder(artifact.folder, device)
    if "class_name" in artifact.data.variables:
        vit.class_names = tuple(artifact.data["class_name"].values.tolist())
    return vit


def open_folder(folder: Path, device: str = "cpu", normalisation: Normalisation | None = None) -> HookedViT:
    """The vision model in a folder, with its head where one lies there, and with its image processor.

    Args:
        folder: as ``save_pretrained`` leaves it.
        device: where the weights go.
        normalisation: mean and standard deviation of the pixels, of a model whose folder does not say how
            its images are prepared; they are resized to what the configuration asks for.

    Raises:
        StepError: as ``open_pretrained``; and when folder and ``normalisation`` both say how images are
            prepared, or neither does.
    """
    model, head = open_pretrained(folder, device), load_head(folder)
    vit = HookedViT(model, None if head is None else head.to(device), None, load_preprocessing(folder))
    vit.class_names = _names_of_classes(vit)
    _prepare(vit, folder, normalisation)
    return vit


def _prepare(vit: HookedViT, folder: Path, normalisation: Normalisation | None) -> None:
    """Have ``vit`` know how its images are prepared: where nothing says it, only a toy takes pixels / 255."""
    *_, channels, rows, columns = vit.configured_shape
    unsaid = vit.preprocessing is None and channels == RGB and not isinstance(vit.model, ToyViT)
    if normalisation is not None and not unsaid:
        raise StepError(
            f"{folder.name}: image_mean and image_std are for models of {RGB} channels that come without "
            f"{PREPROCESSOR}, which this one is not: leave them out"
        )
    if normalisation is not None:
        vit.preprocessing = plain_preprocessing((rows, columns), *normalisation)
    elif unsaid:
        raise StepError(
            f"{folder.name} does not say how the images of its model are prepared: it has no {PREPROCESSOR}. "
            "Put that file there (save_pretrained of the model's image processor writes it), or give "
            "image_mean and image_std (in Python: normalisation=(mean, std)), which pixels, divided by 255, "
            "were normalised with in training: often [0.485, 0.456, 0.406] and [0.229, 0.224, 0.225], "
            "those of ImageNet; [0, 0, 0] and [1, 1, 1] leave pixels / 255"
        )


def _names_of_classes(vit: HookedViT) -> tuple[str, ...] | None:
    """Names of the classes by the configuration; None where it only numbers them (``LABEL_0``)."""
    named: Mapping[int, str] = getattr(vit.model.config, "id2label", None) or {}
    names = tuple(named[number] for number in sorted(named))
    numbered = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return None if vit.n_classes != len(names) or numbered else names


def open_pretrained(folder: Path, device: str = "cpu") -> nn.Module:
    """The vision model in a ``save_pretrained`` folder, frozen, in evaluation mode, in float32.

    Only safetensors are read: other formats of weights can hold code.

    Raises:
        StepError: when the folder holds no model, one of an unknown class, or weights that do not fit it.
    """
    return _open(folder, _VISION_PART, device)


def open_whole(folder: Path, device: str = "cpu") -> Any:
    """As ``open_pretrained``, with the text tower where there is one.

    Raises:
        StepError: as ``open_pretrained``.
    """
    return _open(folder, {}, device)


def _open(folder: Path, instead: Mapping[str, str], device: str) -> Any:
    kind = _class_of(folder, instead)
    if not list(folder.glob("*.safetensors")):
        raise StepError(
            f"{folder.name} holds no safetensors, and other files of weights (pytorch_model.bin) are not "
            "read, since they can run code. Convert them once where you trust them: load the model with "
            "transformers, call save_pretrained, and give that folder as `path`"
        )
    model, lacking = _from_pretrained(kind, folder)
    poolerless = "add_pooling_layer" in signature(kind).parameters
    if poolerless and lacking and all(name.startswith("pooler.") for name in lacking):
        # Published without, as DINO was: what would be made up in its place, nobody reads.
        model, lacking = _from_pretrained(kind, folder, add_pooling_layer=False)
    if lacking:
        shown = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
        raise StepError(
            f"{WEIGHTS} does not hold the model that {CONFIG} describes: {len(lacking)} weights of "
            f"{kind.__name__} are missing or of another shape ({shown})"
        )
    return model.eval().requires_grad_(False).to(device)


def _from_pretrained(kind: Any, folder: Path, **options: Any) -> tuple[Any, list[str]]:
    """The model, and the names of its weights that the folder does not hold in the shape that it needs."""
    try:
        model, found = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise StepError(f"{folder.name}: the model cannot be opened: {error}") from error
    return model, sorted({*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])})


def _class_of(folder: Path, instead: Mapping[str, str]) -> Any:
    """The model class that a folder's configuration names, or the one to take ``instead``."""
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StepError(
            f"{folder.name} is no folder of a model: its {CONFIG} cannot be read ({error})"
        ) from error
    if "architecture" in config:  # one, and not a list of them
        raise StepError(
            f"{folder.name} holds a model of timm ({config['architecture']}); load_model takes those of "
            "transformers. Where transformers has the same weights by another name, take these; in Python, "
            "HookedViT(timm.create_model(…)) of prisma_steps.models.hooked puts hooks on a VisionTransformer "
            "of timm"
        )
    name = next(iter(config.get("architectures") or []), None)
    name = instead.get(str(name), name)
    found = ToyViT if name == ToyViT.__name__ else getattr(transformers, str(name), None)
    if found is None:
        raise StepError(
            f"{CONFIG} names the class {name!r} (architectures), which transformers does not have: give a "
            "folder that save_pretrained wrote"
        )
    return found
