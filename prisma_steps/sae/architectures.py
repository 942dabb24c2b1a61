"""Every architecture by its name: the one place that imports them all."""

from __future__ import annotations

from collections.abc import Mapping

# Imported to be registered.
from prisma_steps.sae import batch_topk as _batch_topk  # noqa: F401
from prisma_steps.sae import gated as _gated  # noqa: F401
from prisma_steps.sae import jumprelu as _jumprelu  # noqa: F401
from prisma_steps.sae import matryoshka as _matryoshka  # noqa: F401
from prisma_steps.sae import neurons as _neurons  # noqa: F401
from prisma_steps.sae import relu as _relu  # noqa: F401
from prisma_steps.sae import topk as _topk  # noqa: F401
from prisma_steps.sae.autoencoder import Autoencoder, registered


def architecture(name: str) -> type[Autoencoder]:
    """The class of an architecture.

    Raises:
        ValueError: naming the architectures that exist.
    """
    known: Mapping[str, type[Autoencoder]] = registered()
    if name not in known:
        raise ValueError(f"architecture {name!r} is not one of {', '.join(sorted(known))}")
    return known[name]
