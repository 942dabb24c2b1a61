"""A trained model, for every test that asks for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def focus_vit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the focus ViT-S as ``transformers`` loads it: trained, 12 layers, 6 heads, width 384."""
    from prisma_steps.models.focus_vit import convert, installed_file

    folder = tmp_path_factory.mktemp("focus") / "focus_vit_s"
    convert(installed_file(), folder)
    yield folder
    shutil.rmtree(folder)  # pytest would keep it, 90 MB, for three more runs
