"""A copy of the package and its workflow, to be edited and run by the real Snakemake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = "from prisma_steps.cli import main; main()"


@dataclass(frozen=True)
class Checkout:
    """A folder that holds the package and the workflow; in time experiments, a store and results."""

    folder: Path
    hash_seed: int = 0

    def copy(self, folder: Path) -> Checkout:
        """All of it anew elsewhere, store included, sharing no file."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Checkout(folder, self.hash_seed)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the folder; it imports the copied package."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PRISMA_STEPS")}
        own = {"PYTHONPATH": str(self.folder), "PYTHONHASHSEED": str(self.hash_seed)}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=inherited | own,
            capture_output=True,
            text=True,
            check=False,
        )

    def command(self, *arguments: str, code: int = 0) -> Any:
        """The answer of ``prisma-steps … --json``, which must leave with ``code``."""
        done = self.python("-c", COMMAND, *arguments, "--json")
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}\n{self.snakemake_log()}"
        return json.loads(done.stdout)

    def snakemake_log(self) -> str:
        """What Snakemake last said."""
        logs = sorted(self.folder.glob("results/*/.runs/*/snakemake.log"))
        return logs[-1].read_text(encoding="utf-8") if logs else ""

    def edit(self, file: str, before: str, after: str) -> None:
        """Replace a text that ``file`` holds exactly once."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{file} holds {before!r} {text.count(before)} times"
        path.write_text(text.replace(before, after), encoding="utf-8")

    def edit_modules(self, change: Callable[[str], str]) -> None:
        """Pass the source of every module of the package through ``change``."""
        for path in sorted((self.folder / "prisma_steps").rglob("*.py")):
            path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.fixture(scope="session")
def fresh_checkout() -> Callable[..., Checkout]:
    """Makes a checkout of the sources as they are, with nothing else."""

    def make(folder: Path, hash_seed: int = 0) -> Checkout:
        for name in ("prisma_steps", "workflow"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        return Checkout(folder, hash_seed)

    return make
