"""Runs every benchmark: ``python -m benchmarks``, or some: ``python -m benchmarks engine``."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks


def main() -> int:
    """Run the benchmarks named on the command line, or all; 1 when a limit is missed."""
    names = [info.name for info in pkgutil.iter_modules(benchmarks.__path__) if info.name != "__main__"]
    modules = [importlib.import_module(f"benchmarks.{name}") for name in names]
    chosen = [module for module in modules if hasattr(module, "benchmark")]
    wanted = sys.argv[1:] or [module.__name__.rpartition(".")[2] for module in chosen]
    passed = [module.benchmark() for module in chosen if module.__name__.rpartition(".")[2] in wanted]
    return 0 if passed and all(passed) else 1


raise SystemExit(main())
