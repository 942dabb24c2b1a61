"""Mechanistic interpretability of vision transformers, as a workflow of cached, labelled artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prisma_steps.python_api import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import on first use: planning must not pay for xarray and torch."""
    if name == "load":
        from prisma_steps.python_api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
