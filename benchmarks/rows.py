"""Rows of a table, each served by a process of its own, with settings and memory of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.environments import ROOT


class Row:
    """A process that runs a module of this package, and answers a line with a line."""

    def __init__(self, module: str, *words: str, python: Path = Path(sys.executable)) -> None:
        """Start ``python -m benchmarks.module words``, and wait until it says that it is ready."""
        self.name = f"{words[0]!r} of benchmarks.{module}"
        self.memory = 0.0
        command = [str(python), "-m", f"benchmarks.{module}", *words]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while self._answer() != "ready\n":  # libraries print as they start
            pass

    def __enter__(self) -> Row:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.communicate()

    def run(self, count: int) -> None:
        """Go through so much of what the row is about; ``memory`` is the MiB that it then says it took."""
        self.memory = float(self.ask(str(count)))

    def ask(self, line: str) -> str:
        """The answer to a line."""
        stdin = self._process.stdin
        assert stdin is not None
        print(line, file=stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        if not (line := stdout.readline()):
            raise RuntimeError(f"the row {self.name} ended early: see above")
        return line
