"""A folder with a dictionary, in whichever format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from prisma_steps.sae.formats import sae_lens, vit_prisma
from prisma_steps.sae.formats.files import FormatError
from prisma_steps.sae.formats.published import Published

_FORMATS: Mapping[str, ModuleType] = {"sae_lens": sae_lens, "vit_prisma": vit_prisma}

#: Files that may be part of a dictionary, in any format.
FILES = (
    sae_lens.CONFIG,
    sae_lens.WEIGHTS,
    sae_lens.SCALER,
    vit_prisma.CONFIG,
    vit_prisma.SAFE_WEIGHTS,
    "*.pt",
)


def read_folder(folder: Path) -> Published:
    """The dictionary in a folder, which its file of settings tells the format of.

    Raises:
        FormatError: when there is none, or it cannot be read or represented.
    """
    readers: Mapping[str, Callable[[Path], Published]] = {
        module.CONFIG: module.read for module in _FORMATS.values()
    }
    for name, read in readers.items():
        if (folder / name).is_file():
            return read(folder)
    if not folder.is_dir():
        raise FormatError(f"there is no folder {folder.name!r}")
    held = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise FormatError(
        f"{folder.name} is no folder of a dictionary: it holds {held}, expected {sae_lens.CONFIG} with "
        f"{sae_lens.WEIGHTS} (SAELens), or {vit_prisma.CONFIG} with {vit_prisma.WEIGHTS} (ViT-Prisma)"
    )


def write_folder(published: Published, folder: Path, format: str) -> None:
    """Write a dictionary into a folder, which is made, in ``format``: sae_lens or vit_prisma.

    Raises:
        FormatError: for another format, for what it cannot hold, and when the folder holds a dictionary.
    """
    if format not in _FORMATS:
        raise FormatError(f"format is {format!r}, expected one of {', '.join(_FORMATS)}")
    module = _FORMATS[format]
    there = [name for name in (module.CONFIG, module.WEIGHTS) if (folder / name).exists()]
    if there:
        raise FormatError(f"{folder} holds {' and '.join(there)} already: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    module.write(published, folder)
