"""Settings that all circuits have, whether of edges or of latents."""

from __future__ import annotations

from typing import Literal

from prisma_steps.step import Field, StepParams


class CircuitParams(StepParams):
    """What is explained, and which circuits are tried."""

    metric: Literal["logit_difference", "kl_to_clean"] = Field(
        "logit_difference",
        description="what is explained: the logit of the clean class minus that of the corrupted one, or the "
        "KL divergence to the clean run",
    )
    circuit_sizes: list[int] = Field(
        min_length=1,
        description="sizes of the circuits: edges, before those are left out that lead nowhere; or latents "
        "and error terms, those of the largest effect",
    )
    n_controls: int = Field(3, ge=0, description="random circuits of each size, for comparison")
    seed: int = Field(0, ge=0, description="seed of random circuits, and of resampling")

    @property
    def sizes(self) -> list[int]:
        """Sizes of the circuits, ascending, each once."""
        return sorted(set(self.circuit_sizes))
