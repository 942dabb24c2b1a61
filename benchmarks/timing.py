"""Timing on a noisy machine: candidates take turns, medians are compared."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate over rounds in which all take turns, after one round not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, candidate in candidates.items():
            began = time.perf_counter()
            candidate()
            if turn:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def command(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Callable[[], object]:
    """A candidate that runs a command, which must succeed."""

    def run() -> None:
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")

    return run


def report(what: str, ours: float, theirs: float, limit: float) -> bool:
    """Print a ratio beside its limit; returns whether it holds."""
    ratio = ours / theirs
    verdict = "ok" if ratio <= limit else "TOO SLOW"
    print(
        f"{what:<64} {ours:6.2f} s / {theirs:5.2f} s = {ratio:4.2f}  (limit {limit:g})  {verdict}", flush=True
    )
    return ratio <= limit


def report_speed(what: str, ours: float, theirs: float, least: float | None) -> bool:
    """Print how many times as fast ours is, beside the least that it must be; returns whether it holds."""
    speed = theirs / ours
    holds = least is None or speed >= least
    limit = "no limit here" if least is None else f"at least {least:g}"
    verdict = "" if least is None else "  ok" if holds else "  TOO SLOW"
    print(f"{what:<64} {theirs:6.2f} s / {ours:5.2f} s = {speed:4.2f} ×  ({limit}){verdict}", flush=True)
    return holds
