"""Which files a folder holds: one walk, for its fingerprint as for those who read it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def walk(folder: Path | str, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file below ``folder`` with its path from there, ``/`` between the parts; in no order.

    Names that begin with a dot are passed over. Links to folders are not followed. What is a folder and what
    a link, the listing of a folder tells: no file is asked for it.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path, f"{below}{entry.name}/")
            else:
                yield f"{below}{entry.name}", entry
