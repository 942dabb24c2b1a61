"""Timm without torchvision, which it imports and which is not installed."""

from __future__ import annotations

import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest

#: What timm imports of torchvision as it is imported itself.
TORCHVISION = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models.feature_extraction",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


def imported_timm() -> ModuleType:
    """Timm, whose models are another implementation. Its reading of images does not work.

    It imports torchvision for that and for detection, which no vision transformer uses; mocks stand in for it
    during the import.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in TORCHVISION:
            patch.setitem(sys.modules, name, MagicMock())
        import timm

    return timm
