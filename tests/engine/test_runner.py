"""What the runner measures of a job."""

from __future__ import annotations

import subprocess
import sys

OWN = "from prisma_steps.runner import peak_memory; print(peak_memory())"
HOLDING = f"""
import subprocess, sys
held = bytearray(b"x") * 2**29
{OWN}
subprocess.run([sys.executable, "-c", {OWN!r}], check=True)
"""


def test_peak_memory_is_of_the_process_itself_and_not_of_the_one_that_started_it() -> None:
    told = subprocess.run([sys.executable, "-uc", HOLDING], capture_output=True, check=True, text=True).stdout
    parent, child = map(int, told.split())
    assert 2**29 < parent < 2**29 + 2**27
    assert 2**20 < child < 2**27
