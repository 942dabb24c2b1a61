"""A trained model, timm and photographs, for every test that asks for them."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

from tests.without_torchvision import imported_timm

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def focus_vit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the focus ViT-S as ``transformers`` loads it: trained, 12 layers, 6 heads, width 384."""
    from prisma_steps.models.focus_vit import convert, installed_file

    folder = tmp_path_factory.mktemp("focus") / "focus_vit_s"
    convert(installed_file(), folder)
    yield folder
    shutil.rmtree(folder)  # pytest would keep it, 90 MB, for three more runs


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """Timm, imported without torchvision."""
    return imported_timm()


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Makes folders of CIFAR-10 images, 32 × 32 JPEG: those of a split (train, test), so many of each class.

    They lie in ten folders named as their classes; it is always the first ones of a class, by name.
    """

    def extract(split: str, per_class: int) -> Path:
        folder = tmp_path_factory.mktemp(f"cifar10_{split}")
        with tarfile.open(cifar10_archive()) as archive:
            for member in _first(archive, split, per_class):
                member.name = "/".join(PurePosixPath(member.name).parts[2:])
                archive.extract(member, folder, filter="data")
        return folder

    return extract


def cifar10_archive() -> Path:
    """``cifar10_12k.tar``: 1000 training and 200 test images of each class."""
    folder = Path(os.environ.get("PRISMA_STEPS_TEST_DATA", ROOT.parent / "shared" / "data"))
    file = folder / "cifar10_12k.tar"
    if not file.is_file():
        pytest.fail(f"no {file.name} in {folder}: set PRISMA_STEPS_TEST_DATA to the folder that holds it")
    return file


def _first(archive: tarfile.TarFile, split: str, per_class: int) -> list[tarfile.TarInfo]:
    classes = defaultdict(list)
    for member in sorted(archive.getmembers(), key=lambda member: member.name):
        if member.isfile() and PurePosixPath(member.name).parts[1] == split:
            classes[PurePosixPath(member.name).parts[2]].append(member)
    short = {name: len(images) for name, images in classes.items() if len(images) < per_class}
    if short or not classes:
        pytest.fail(
            f"{per_class} images of every class of {split!r} were asked for; there are {short or 'none'}"
        )
    return [member for images in classes.values() for member in images[:per_class]]
