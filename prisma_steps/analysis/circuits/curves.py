"""Faithfulness against size, of circuits, of all that they leave out, and of random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from prisma_steps.step import StepError

#: Variables by name, with their dims.
Variables: TypeAlias = Mapping[str, tuple[tuple[str, ...], np.ndarray]]


def curves(
    clean: float,
    metrics: Float[np.ndarray, "ablation circuit"],
    ablations: Sequence[str],
    sizes: Sequence[int],
    n_controls: int,
    dim: str,
) -> Variables:
    """Metric, faithfulness and its area; ``…_complement`` and ``…_random`` beside those of the circuits.

    Args:
        clean: the metric of the clean run.
        metrics: of runs of the circuits of each size, then of their complements, then of the random circuits
            of each size, control by control, and last of the empty one.
        ablations: what the rest was, by name.
        sizes: of the circuits, ascending.
        n_controls: random circuits of each size.
        dim: the name of the dim along sizes.

    Raises:
        StepError: when the empty circuit does what the clean run does.
    """
    empty = metrics[:, -1]
    _check_ends(clean, empty, ablations)
    chosen, complement, random = np.split(metrics[:, :-1], [len(sizes), 2 * len(sizes)], axis=1)
    random = random.reshape(len(metrics), n_controls, len(sizes))
    found = {"clean_metric": ((), np.array(clean)), "empty_metric": (("ablation",), empty)}
    for which, run in {"": chosen, "_complement": complement, "_random": random}.items():
        dims = ("ablation", *["control"] * (run.ndim - 2), dim)
        curve = faithfulness(run, clean, empty.reshape(-1, *[1] * (run.ndim - 1)))
        found[f"circuit_metric{which}"] = dims, run
        found[f"faithfulness{which}"] = dims, curve
        found[f"faithfulness_area{which}"] = dims[:-1], area(curve, sizes)
    return found


def _check_ends(clean: float, empty: np.ndarray, ablations: Sequence[str]) -> None:
    for ablation, value in zip(ablations, empty, strict=True):
        if value == clean:
            raise StepError(
                f"with everything ablated ({ablation}) the metric is {clean:.6g} as in the clean run, so "
                "that there is nothing a circuit could be faithful to. Give pairs that the model answers "
                "differently"
            )


def faithfulness(circuit: np.ndarray, clean: float, empty: np.ndarray) -> np.ndarray:
    """(m(circuit) − m(empty)) / (m(clean) − m(empty)) of metrics that are means over pairs.

    The empty circuit is the corrupted run where edges carry corrupted writes (Hanna et al. 2024, section
    2.3), and the run with all edges ablated otherwise (Marks et al. 2024, section 3.3): always 0, as the
    whole graph is always 1.
    """
    return (circuit - empty) / (clean - empty)


def area(curve: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Mean faithfulness over the range of sizes, by trapezoids along the last dim; of one size, its value."""
    if len(sizes) == 1:
        return curve[..., 0]
    return np.trapezoid(curve, sizes, axis=-1) / (sizes[-1] - sizes[0])


def losses(
    clean: float,
    whole: Float[np.ndarray, " ablation"],
    smaller: Float[np.ndarray, "ablation edge"],
    empty: Float[np.ndarray, " ablation"],
    circuit: Bool[np.ndarray, "source target"],
) -> Float[np.ndarray, "ablation source target"]:
    """The faithfulness that a circuit loses without one of its edges; NaN where it has none.

    Wang et al. 2022 (arXiv 2211.00593, section 4) ask it of nodes, and of what is left after some other nodes
    are gone too: here none are. An edge that loses nothing is not needed.

    Args:
        clean: the metric of the clean run.
        whole: of the circuit.
        smaller: of the circuit without each of its edges, row by row.
        empty: of the run with all edges ablated.
        circuit: its edges.
    """
    lost = np.full((len(whole), *circuit.shape), np.nan)
    with_all = faithfulness(whole, clean, empty)
    lost[:, circuit] = with_all[:, None] - faithfulness(smaller, clean, empty[:, None])
    return lost
