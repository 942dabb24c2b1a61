"""What reading activations costs, beside a forward pass of ``transformers`` that reads nothing."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.timing import interleaved, report_speed

ROOT = Path(__file__).parents[1]
#: Images that every row goes through: two sections of the store, the first written while the second is made.
COUNT = 256
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
        rows = {name: stack.enter_context(Row(name)) for name in _names()}
        if nnsight := nnsight_python():
            rows["nnsight"] = stack.enter_context(Row("nnsight", python=nnsight))
        times = interleaved({name: row.run for name, row in rows.items()}, rounds=3)
        memory = {name: row.memory for name, row in rows.items()}
    for name, seconds in times.items():
        share, images = times["bare"] / seconds, COUNT / seconds
        print(f"{name:<24} {images:6.1f} images/s  {share:5.2f} × bare  {memory[name]:6.0f} MB at most")
    return all([*_speed_limits(times, full), *_memory_limits(memory)])


def _names() -> list[str]:
    modes = [f"{dtype}{what}" for dtype in PRECISION for what in ("", ", patterns")]
    return ["bare", "hidden states", "attentions", *modes, "float32, not written", "float32, to layer 5"]


def _speed_limits(times: Mapping[str, float], full: bool) -> list[bool]:
    """Ratios to what gives the same; where the processor cannot be faster, float32 must not be slower."""
    float32, bfloat16 = (1.8, 3.5) if full else (1.0, None)
    limits: list[tuple[str, str, float | None]] = [
        ("float32", "bare", float32),
        ("bfloat16", "bare", bfloat16),
        ("float32", "hidden states", None),
        ("float32", "nnsight", None),
        ("float32", "float32, not written", None),
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
    with Row("small", "small") as few, Row("small", "small") as many:
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


class Row:
    """A process that serves a row of ``benchmarks.extract_rows``."""

    def __init__(self, name: str, shape: str = "CLIP-B/32", python: Path = Path(sys.executable)) -> None:
        """Start it, and wait until it has gone through a first batch."""
        words = [str(python), "-m", "benchmarks.extract_rows", name, shape]
        self.name, self.memory = name, 0.0
        self._process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def __enter__(self) -> Row:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.communicate()

    def run(self, count: int = COUNT) -> None:
        """Go through so many images."""
        stdin = self._process.stdin
        assert stdin is not None
        print(count, file=stdin, flush=True)
        self.memory = float(self._answer())

    def _answer(self) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        if not (line := stdout.readline()):
            raise RuntimeError(f"the row {self.name!r} of benchmarks.extract_rows ended early: see above")
        return line


def nnsight_python(version: str = "0.8.1") -> Path | None:
    """A Python that has nnsight beside our packages, which stay as they are; None if it cannot be had."""
    folder = ROOT / "build" / "benchmarks" / "nnsight"
    python = folder / "bin" / "python"
    if not (folder / version).exists():
        words: Sequence[Sequence[str]] = [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-c", _SHARE_OURS, sysconfig.get_path("purelib")],
            [str(python), "-m", "pip", "install", "--quiet", f"nnsight=={version}"],
        ]
        for command in words:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(
                    f"nnsight is not compared with: it could not be installed. {done.stderr.strip()[-300:]}"
                )
                return None
        (folder / version).touch()
    return python


#: Run in the new environment: what is installed in ours is found there, after what is installed there.
_SHARE_OURS = """
import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "ours.pth").write_text(sys.argv[1])
"""
