"""Other libraries, each in an environment of its own that shares our packages as they are."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Run in a new environment: what is installed in ours is found there, after what is installed there. torch
#: stays the same, and torchvision out.
_SHARE_OURS = """
import importlib.metadata, pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "ours.pth").write_text(sys.argv[1])
sys.path.append(sys.argv[1])
torch = importlib.metadata.version("torch").partition("+")[0]
pathlib.Path(sys.argv[2]).write_text(f"torch=={torch}\\ntorchvision<0\\n")
"""


def python_with(package: str, *needs: str) -> Path | None:
    """A Python that has another library beside our packages; None, with a word on it, if it cannot be had.

    Args:
        package: ``name==version``, installed without what it depends on.
        needs: what it needs that we have not.
    """
    name, _, version = package.partition("==")
    folder = ROOT / "build" / "benchmarks" / name
    python, mark, ours = folder / "bin" / "python", folder / version, sysconfig.get_path("purelib")
    if mark.exists() and mark.read_text() == ours:
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    constraints = folder / "constraints.txt"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-c", _SHARE_OURS, ours, str(constraints)],
        [*pip, "--no-deps", package],
        *([[*pip, "--constraint", str(constraints), *needs]] if needs else []),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} is not compared with: it could not be installed. {done.stderr.strip()[-300:]}")
            return None
    mark.write_text(ours)
    return python
