"""What is to be said of an artifact: what it is, what it was made from, and how."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: What a manifest says of how its data were computed; a linked artifact inherits it.
FACTS = ("data", "versions", "host", "device", "threads", "seconds", "peak_memory", "together_with")

_PACKAGES = (
    "prisma-steps",
    "torch",
    "transformers",
    "numpy",
    "xarray",
    "zarr",
    "dask",
    "snakemake",
    "matplotlib",
)


def describe(
    spec: Mapping[str, Any], digests: Mapping[str, Any], computation: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is to be said of an artifact, without paths of this machine."""
    outside = spec["identity"].get("outside", {})
    parameters = {
        name: Path(value).name if name in outside else value for name, value in spec["parameters"].items()
    }
    inputs = {
        slot: {**filled, "digests": digests[slot]["digests"] if filled["gathered"] else [digests[slot]]}
        for slot, filled in spec["inputs"].items()
    }
    return {
        "title": spec["title"],
        "experiment": spec["experiment"],
        "node": spec["node"],
        "point": spec["point"],
        "parameters": parameters,
        "identity": spec["identity"],
        "inputs": inputs,
        "computation": computation,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": _git_commit(),
        **facts,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers and their storage depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """The commit of the current folder, with a + when files differ from it; None outside a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
