"""Labels of a Dataset, whether it is of the kind that its step declares, and examples of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prisma_steps.schema.kinds import Kind
from prisma_steps.schema.meanings import MEANINGS

if TYPE_CHECKING:
    import xarray as xr


class SchemaError(ValueError):
    """A Dataset does not fit the kind that its step declares."""


def label(data: xr.Dataset) -> xr.Dataset:
    """Give every variable and coordinate of ``data`` its ``long_name`` and ``units``.

    Names that have no entry in ``MEANINGS`` must bring both attributes along.

    Raises:
        SchemaError: naming every variable that has neither.
    """
    unknown = []
    for name, variable in data.variables.items():
        meaning = MEANINGS.get(str(name))
        if meaning is not None:
            variable.attrs = {**meaning._asdict(), **variable.attrs}
        elif not {"long_name", "units"} <= set(variable.attrs):
            unknown.append(str(name))
    if unknown:
        raise SchemaError(f"no long_name and units for {', '.join(unknown)}: add them to schema.MEANINGS")
    return data


def example(
    kind: Kind, seed: int = 0, *, clips: bool = False, cells: Sequence[str] = ("token",)
) -> xr.Dataset:
    """A small made-up artifact of a kind, with all labels of a real one, to try a step or a figure on.

    Args:
        kind: of which kind.
        seed: of its random numbers.
        clips: of a model of clips, with ``patch_frame`` beside ``patch_row`` and ``patch_col``.
        cells: what is patched or ablated one by one in each layer: token, head, or (patched) both.

    Raises:
        SchemaError: when there is no example of the kind, or it does not fit the kind.
    """
    from prisma_steps.examples import MAKERS, made_up

    if kind.name not in MAKERS:
        raise SchemaError(
            f"there is no example of {kind.name}: add a function that makes one to prisma_steps/examples/, "
            "and name it in MAKERS there"
        )
    data = label(made_up(kind.name, seed, clips, cells))
    check(data, kind)
    return data


def check(data: xr.Dataset, kind: Kind) -> None:
    """Raise ``SchemaError`` with every way in which ``data`` is not an artifact of ``kind``."""
    problems = []
    strange = set(map(str, data.dims)) - kind.dims
    if strange:
        problems.append(f"unexpected dims {sorted(strange)}; {kind.name} has {sorted(kind.dims)}")
    for name, dims in kind.required.items():
        fitting = [dims, *kind.otherwise.get(name, ())]
        if name not in data:
            problems.append(f"variable {name!r} is missing")
        elif data[name].dims not in fitting:
            problems.append(f"{name} has dims {data[name].dims}, expected {' or '.join(map(str, fitting))}")
    if "image" in data.dims and not data.get_index("image").is_unique:
        problems.append("image ids are not unique")
    if problems:
        raise SchemaError(f"not {kind.name}: " + "; ".join(problems))
