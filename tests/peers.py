"""Other implementations of sparse autoencoders, imported without what they need for anything else.

They are installed without what they declare, which would bring language models, torchvision and OpenCV along.
Their packages are entered below ``__init__``, which imports all of that. For what the classes import of it
themselves, something stands in while they are imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
from torch import nn


class _HookPoint(nn.Identity):
    """What transformer_lens has in this place, with no hook on it."""


class _HookedRootModule(nn.Module):
    def setup(self) -> None:
        """Nothing to find: nobody asks for hooks by name."""


def sae_lens() -> Any:
    """Its module of dictionaries, ``sae_lens.saes``, with those registered that it can open from a folder."""
    hook_points, root = MagicMock(HookPoint=_HookPoint), MagicMock(HookedRootModule=_HookedRootModule)
    instead = {
        "einops": MagicMock(),
        "transformer_lens": MagicMock(),
        "transformer_lens.hook_points": hook_points,
        "transformer_lens.HookedTransformer": root,
    }
    saes = _below("sae_lens", "saes", instead, __version__="6.0.0", logger=logging.getLogger("sae_lens"))
    registry: Any = sys.modules["sae_lens.registry"]
    if not registry.SAE_CLASS_REGISTRY:
        for name in _REGISTERED:
            kind, config = getattr(saes, name), getattr(saes, f"{name}Config")
            registry.register_sae_class(config.architecture(), kind, config)
    return saes


_REGISTERED = (
    *("StandardSAE", "GatedSAE", "TopKSAE", "JumpReLUSAE", "Transcoder", "SkipTranscoder"),
    *("JumpReLUTranscoder", "JumpReLUSkipTranscoder"),
)


def overcomplete() -> Any:
    """Its module of dictionaries, ``overcomplete.sae``."""
    if sys.version_info >= (3, 13):
        pytest.skip("overcomplete is not made for Python 3.13")
    return _below("overcomplete", "sae", {"einops": MagicMock()})


def _below(package: str, module: str, instead: dict[str, Any], **has: Any) -> ModuleType:
    """A module of a package whose own ``__init__`` does not run."""
    name = f"{package}.{module}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        pytest.fail(
            f"{package} is not installed: pip install --no-deps --requirement requirements-no-deps.txt"
        )
    entered: Any = ModuleType(package)
    entered.__path__ = list(found.submodule_search_locations)
    vars(entered).update(has)
    sys.modules[package] = entered
    with pytest.MonkeyPatch.context() as patch:
        for other, mock in instead.items():
            patch.setitem(sys.modules, other, mock)
        return importlib.import_module(name)
