"""Mechanistic interpretability of vision transformers, as a workflow of cached, labelled artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prisma_steps.python_api import load, load_model, load_sae, save_sae

__all__ = ["load", "load_model", "load_sae", "save_sae"]


def __getattr__(name: str) -> Any:
    """Import on first use: planning must not pay for xarray and torch."""
    if name in __all__:
        from prisma_steps import python_api

        return getattr(python_api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
