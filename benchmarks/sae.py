"""Training of sparse autoencoders beside other libraries: speed, memory, and what is learned meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.environments import python_with
from benchmarks.rows import Row
from benchmarks.sae_rows import BATCH, D_MODEL, MEMBERS
from benchmarks.timing import interleaved, report_speed

DTYPES = {"float32": 4, "bfloat16": 2}
#: Rounds that are timed, after one that is not, and batches of each in a round.
ROUNDS, BATCHES = 3, 8
N_LATENTS, N_LATENTS_OF_GRID = 12_288, 3_072
#: FVU in bfloat16 above that in float32 at most, and ours above the best of the others.
SAME_FVU = 1.02
#: Weights, optimiser and one batch of latents, times this, at most.
MEMORY = 1.2


#: What is installed without its dependencies, and what it needs that we have not.
PEERS = {
    "sae-lens": ("sae-lens==6.54.12", "transformer-lens<4", "datasets", "simple-parsing", "babe"),
    "dictionary-learning": ("dictionary-learning==0.1.0", "nnsight", "einops", "datasets", "zstandard"),
    "overcomplete": ("overcomplete==0.3.0", "einops"),
}
#: Rows whose bfloat16 is no mode of the library: torch's autocast is put around its step here.
WRAPPED = ("dictionary-learning, bfloat16", "overcomplete, bfloat16")


def benchmark() -> bool:
    """Run all; False when a limit is missed."""
    pythons = {name: python for name, peer in PEERS.items() if (python := python_with(*peer))}
    return all([*_widths(pythons), grid(pythons)])


def _widths(pythons: Mapping[str, Path]) -> list[bool]:
    return [architecture_speed(architecture, pythons) for architecture in ("relu", "topk")]


def architecture_speed(architecture: str, pythons: Mapping[str, Path]) -> bool:
    """One architecture by all libraries and precisions, and for ReLU the products that it consists of."""
    names = [f"{architecture}, {who}, {dtype}" for who in ("ours", *pythons) for dtype in DTYPES]
    if architecture == "relu":
        names += [f"relu, ours, {dtype}, all latents" for dtype in DTYPES]
        names += [f"products, {dtype}" for dtype in DTYPES]
    found = _run(names, N_LATENTS, pythons)
    least = {"relu": (1.8, 4.0), "topk": (4.0, 8.0)}[architecture]
    passed = _against_peers(architecture, found, least)
    if architecture == "relu":
        for dtype, share in (("bfloat16", 0.8), ("float32", 0.7)):
            passed.append(_compare(found, f"relu, ours, {dtype}", f"products, {dtype}", share))
            _compare(found, f"relu, ours, {dtype}, all latents", f"products, {dtype}", None)
    return all([*passed, *_quality(architecture, found), *_memory(architecture, found)])


def grid(pythons: Mapping[str, Path]) -> bool:
    """Eight dictionaries on the same tokens, in one pass over them or each library's own way: one by one."""
    who = [name for name in pythons if name != "overcomplete"]
    names = [f"relu × {MEMBERS}, {one}, {dtype}" for one in ("ours", *who) for dtype in DTYPES]
    found = _run(names, N_LATENTS_OF_GRID, pythons, batches=2)
    own = {name: row for name, row in found.items() if not name.endswith(WRAPPED)}
    _against_peers(f"relu × {MEMBERS}", found, (None, None))
    return all(_against_peers(f"relu × {MEMBERS}", own, (5.0, None)))


class Found(NamedTuple):
    """What a row came to: seconds of a round, MiB, FVU and L0."""

    seconds: float
    memory: float
    fvu: float
    l0: float


def _run(
    names: Iterable[str], n_latents: int, pythons: Mapping[str, Path], batches: int = BATCHES
) -> dict[str, Found]:
    with ExitStack() as stack:
        rows = {
            name: stack.enter_context(Row("sae_rows", name, str(n_latents), python=_python(name, pythons)))
            for name in names
        }
        times = interleaved({name: lambda row=row: row.run(batches) for name, row in rows.items()}, ROUNDS)
        found = {name: Found(times[name], row.memory, *_score(row)) for name, row in rows.items()}
    for name, row in found.items():
        wrapped = "  (autocast wrapped around it here)" if name.endswith(WRAPPED) else ""
        learned = "" if "products" in name else f"  FVU {row.fvu:6.4f}  L0 {row.l0:7.1f}"
        speed = f"{batches * BATCH / row.seconds:8.0f} tokens/s"
        print(f"{name:<44} {speed}  {row.memory:6.0f} MiB{learned}{wrapped}", flush=True)
    return found


def _score(row: Row) -> tuple[float, float]:
    """FVU and L0 on tokens that a row was not trained on."""
    fvu, l0 = map(float, row.ask("score").split())
    return fvu, l0


def _python(row: str, pythons: Mapping[str, Path]) -> Path:
    return next((python for peer, python in pythons.items() if peer in row), Path(sys.executable))


def _against_peers(
    what: str, found: Mapping[str, Found], least: tuple[float | None, float | None]
) -> list[bool]:
    """Our faster precision beside the fastest of the others, in any precision and as it comes."""
    ours = min((f"{what}, ours, {dtype}" for dtype in DTYPES), key=lambda name: found[name].seconds)
    others = [name for name in found if name.startswith(f"{what}, ") and ", ours, " not in name]
    passed = []
    for choice, limit in ((others, least[0]), ([name for name in others if "float32" in name], least[1])):
        if choice:
            fastest = min(choice, key=lambda name: found[name].seconds)
            passed.append(_compare(found, ours, fastest, limit))
    return passed


def _compare(found: Mapping[str, Found], ours: str, theirs: str, least: float | None) -> bool:
    return report_speed(f"{ours} / {theirs}", found[ours].seconds, found[theirs].seconds, least)


def _quality(architecture: str, found: Mapping[str, Found]) -> list[bool]:
    """As much is learned from the same tokens: in bfloat16 as in float32, and as by the others."""
    ours = {dtype: found[f"{architecture}, ours, {dtype}"].fvu for dtype in DTYPES}
    names = [name for name in found if name.startswith(f"{architecture}, ") and ", ours, " not in name]
    passed = [
        _at_most(f"{architecture}: FVU in bfloat16 / float32", ours["bfloat16"] / ours["float32"], SAME_FVU)
    ]
    if names:
        best = min(names, key=lambda name: found[name].fvu)
        ratio = max(ours.values()) / found[best].fvu
        passed.append(_at_most(f"{architecture}: FVU, ours / {best}", ratio, SAME_FVU))
    return passed


def _memory(architecture: str, found: Mapping[str, Found]) -> list[bool]:
    """Weights and two moments of each in float32, and latents of a batch in the precision of the products."""
    weights = 2 * D_MODEL * N_LATENTS * 4
    return [
        _at_most(
            f"{architecture}, {dtype}: memory / (weights + optimiser + latents)",
            found[f"{architecture}, ours, {dtype}"].memory * 2**20 / (3 * weights + BATCH * N_LATENTS * size),
            MEMORY,
        )
        for dtype, size in DTYPES.items()
    ]


def _at_most(what: str, value: float, limit: float) -> bool:
    verdict = "ok" if value <= limit else "TOO MUCH"
    print(f"{what}: {value:.3f}  (limit {limit:g})  {verdict}", flush=True)
    return value <= limit
