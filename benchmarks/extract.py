"""What reading activations costs, beside a forward pass of ``transformers`` that reads nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.environments import python_with
from benchmarks.rows import Row
from benchmarks.timing import interleaved, report_speed

NNSIGHT = "nnsight==0.8.1"
#: Images that a row goes through: several sections of the store, of which all but the last are written while
#: the next one is made. In bfloat16 these are more images, so that its rows take about as long.
COUNTS = {"float32": 512, "bfloat16": 1536}
#: ‖ours − transformers‖ / ‖transformers‖ at most.
PRECISION = {"float32": 1e-4, "bfloat16": 3e-2}


def benchmark() -> bool:
    """Run all; False when a limit is missed."""
    return all([precision(), speed(), flatness()])


def speed() -> bool:
    """All rows, of the shape of CLIP-B/32, in turn; and the memory that they took."""
    from prisma_steps.models.fast_inference import has_bfloat16

    full = has_bfloat16()
    if not full:
        print("this processor has no AVX-512 and bfloat16: MKL is as fast as oneDNN, bfloat16 as float32")
    with ExitStack() as stack:
        rows = {name: stack.enter_context(_row(name)) for name in _names()}
        if nnsight := python_with(NNSIGHT):
            rows["nnsight"] = stack.enter_context(Row("extract_rows", "nnsight", "CLIP-B/32", python=nnsight))
        counts = {name: COUNTS.get(name.split(",")[0], COUNTS["float32"]) for name in rows}
        took = interleaved({name: partial(row.run, counts[name]) for name, row in rows.items()}, rounds=2)
        memory = {name: row.memory for name, row in rows.items()}
    times = {name: 1000 * seconds / counts[name] for name, seconds in took.items()}
    for name, each in times.items():
        share, images = times["bare"] / each, 1000 / each
        print(f"{name:<28} {images:6.1f} images/s  {share:5.2f} × bare  {memory[name]:6.0f} MB at most")
    return all([*_speed_limits(times, full), *_memory_limits(memory)])


def _row(name: str, shape: str = "CLIP-B/32") -> Row:
    return Row("extract_rows", name, shape)


def _names() -> list[str]:
    modes = [f"{dtype}{what}" for dtype in PRECISION for what in ("", ", patterns", ", not written")]
    return ["bare", "hidden states", "attentions", *modes, "float32, to layer 5"]


def _speed_limits(times: Mapping[str, float], full: bool) -> list[bool]:
    """Ratios to what gives the same, by seconds for 1,000 images; patterns are not written, as no one else's.

    Where the processor cannot be faster, float32 must not be slower.
    """
    float32, bfloat16 = (1.8, 3.5) if full else (1.0, None)
    limits: list[tuple[str, str, float | None]] = [
        ("float32", "bare", float32),
        ("bfloat16", "bare", bfloat16),
        ("float32", "hidden states", None),
        ("float32", "nnsight", None),
        ("float32", "float32, not written", 0.95),
        ("bfloat16", "bfloat16, not written", None),
        ("float32, to layer 5", "float32", 1.8),
        ("float32, patterns", "attentions", float32),
        ("bfloat16, patterns", "attentions", bfloat16),
    ]
    return [
        report_speed(f"{ours} / {theirs}", times[ours], times[theirs], least)
        for ours, theirs, least in limits
        if theirs in times
    ]


def _memory_limits(memory: Mapping[str, float]) -> list[bool]:
    return [
        _more_memory(f"three layers, {dtype}", memory[dtype] - memory["bare"], 300) for dtype in PRECISION
    ]


def _more_memory(what: str, more: float, limit: float) -> bool:
    verdict = "ok" if more <= limit else "TOO MUCH"
    print(f"{what}: {more:+.0f} MB of memory  (limit {limit:g})  {verdict}", flush=True)
    return more <= limit


def precision() -> bool:
    """What is stored is what ``transformers`` computes."""
    import torch

    from benchmarks import extract_rows
    from prisma_steps.datasets import open_dataset

    pixels = torch.from_numpy(extract_rows.stored_batch()).float() / 255
    with torch.no_grad():
        hidden = extract_rows.random_model("CLIP-B/32")(pixels, output_hidden_states=True).hidden_states
    expected = torch.stack([hidden[layer + 1] for layer in extract_rows.THREE], dim=1)
    passed = []
    for dtype, limit in PRECISION.items():
        with tempfile.TemporaryDirectory() as name:
            extract_rows.extraction("CLIP-B/32", dtype, "resid_post", extract_rows.THREE)(32, Path(name))
            found = torch.from_numpy(open_dataset(Path(name) / "data.zarr")["resid_post"].values)
        error = ((found - expected).norm() / expected.norm()).item()
        passed.append(error <= limit)
        verdict = "ok" if passed[-1] else "TOO FAR"
        print(f"{dtype}: off by {error:.1e} of the norm  (limit {limit:g})  {verdict}", flush=True)
    return all(passed)


def flatness() -> bool:
    """10,000 images beside 1,000, of a smaller model so that it does not take long."""
    with _row("small", "small") as few, _row("small", "small") as many:
        times = interleaved({"few": lambda: few.run(1024), "many": lambda: many.run(10240)}, rounds=1)
        more = many.memory - few.memory
    return all(
        [
            report_speed(
                "10,240 images of a small model / 10 × 1,024", times["many"], 10 * times["few"], 0.9
            ),
            _more_memory("10,240 images of a small model beside 1,024", more, 50),
        ]
    )
