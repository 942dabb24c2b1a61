"""Sweeps of activation patching, beside one hooked forward pass a cell."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.environments import python_with
from benchmarks.extract import NNSIGHT
from benchmarks.patching_rows import ROWS, SWEEPS
from benchmarks.rows import Row
from benchmarks.timing import report_speed

#: How many times as fast as naive hooks float32 and bfloat16 must be.
LIMITS = {
    "one pair, tokens": {"float32": 8, "bfloat16": 15},
    "8 pairs, 8 tokens": {"float32": 4, "bfloat16": 8},
    "one pair, heads": {"float32": 7, "bfloat16": 13},
}
#: How far effects may be from those of naive hooks: in float32 of any effect, in bfloat16 by the root of the
#: mean square, as a share of the spread of the effects.
PRECISION = {"float32": 1e-4, "bfloat16": 0.3}
ROUNDS = 2


def benchmark() -> bool:
    """Run all; False when a limit is missed."""
    return all([_sweep(name) for name in SWEEPS])


def _sweep(name: str) -> bool:
    """All rows, of the shape of CLIP-B/32, in turn."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pythons = {row: Path(sys.executable) for row in ROWS if row != "nnsight"}
        if python := python_with(NNSIGHT):
            pythons["nnsight"] = python
        rows = {
            row: stack.enter_context(Row("patching_rows", row, name, python=python))
            for row, python in pythons.items()
        }
        times = _mean_seconds(rows, folder)
        effects = {row: np.load(folder / f"{row}.npy") for row in rows}
    report_speed(f"{name}: nnsight / naive", times.get("nnsight", float("nan")), times["naive"], None)
    passed = [
        report_speed(f"{name}: {row} / naive", times[row], times["naive"], least)
        for row, least in LIMITS[name].items()
    ]
    return all([*passed, *(_near(name, row, effects) for row in PRECISION)])


def _mean_seconds(rows: Mapping[str, Row], folder: Path) -> dict[str, float]:
    """Means over rounds in which all take turns. Each row went through a cell of every layer before."""
    times = dict.fromkeys(rows, 0.0)
    for _ in range(ROUNDS):
        for name, row in rows.items():
            began = time.perf_counter()
            row.ask(str(folder / f"{name}.npy"))
            times[name] += (time.perf_counter() - began) / ROUNDS
    return times


def _near(name: str, row: str, effects: Mapping[str, np.ndarray]) -> bool:
    expected, found = effects["naive"], effects[row]
    if row == "float32":
        what, error = "at most", np.abs(found - expected).max()
    else:
        what, error = "of the spread, on average", np.sqrt(((found - expected) ** 2).mean()) / expected.std()
    verdict = "ok" if error <= PRECISION[row] else "TOO FAR"
    print(f"{name}: {row} is off by {error:.1e} {what}  (limit {PRECISION[row]:g})  {verdict}", flush=True)
    return bool(error <= PRECISION[row])
