"""How a step is declared: its parameters, its inputs and its output.

A step is a pure function in ``prisma_steps/steps/``, or a figure in ``prisma_steps/figures/``. Importing
this module, or a module that declares a step, imports neither torch nor xarray: planning stays fast.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from prisma_steps.schema import SITE_DIMS, Figure, Kind, site_key

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Artifact",
    "Blocks",
    "Field",
    "HubRevision",
    "InParts",
    "Output",
    "OutsideFolder",
    "SiteName",
    "Slot",
    "Step",
    "StepError",
    "StepParams",
    "gather",
    "step",
]


class StepError(ValueError):
    """A user's mistake that shows only when a step runs. Its message is all that the user is shown."""


class StepParams(BaseModel):
    """Base of every step's ``Params``: closed, strict and immutable.

    Fields enter the key by their values, defaults filled in. Marks in ``json_schema_extra`` refine that:

    * ``{"as_before": True}``: a parameter added later whose default means "as before". It enters the key only
      when it differs from its default, so that keys made before it existed stay.
    * ``{"not_in_key": True}``: a parameter that does not change results (a batch size of an evaluation). It
      never enters the key.
    * ``{"only_for": {"architecture": ["topk"]}}``: a parameter without effect unless another has one of the
      values named. It is left out of the key where it has none.
    * ``{"no_grid": True}``: a parameter that has one value at a node, and no grid of values.
    * ``{"may_differ": True}``: a parameter in which points may differ that are computed together (``step``).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class InParts(StepParams):
    """Base of the ``Params`` of a step whose work can be split along ``image`` into jobs of their own.

    The step makes the data of the images that ``parts.images_of_part`` leaves it. Each part is an artifact;
    whatever reads the node sees them one after the other as one Dataset.
    """

    parts: int = Field(
        1,
        gt=0,
        le=10_000,
        description="jobs that the images are split among; what reads the node sees one Dataset",
        json_schema_extra={"as_before": True, "no_grid": True},
    )
    part: SkipJsonSchema[int] = Field(
        0,
        ge=0,
        description="which of the parts this job makes, counted from 0; set by the plan",
        json_schema_extra={"as_before": True},
    )

    @model_validator(mode="after")
    def _one_of_the_parts(self) -> InParts:
        if self.part >= self.parts:
            raise ValueError(f"part {self.part} is not one of {self.parts}, which count from 0")
        return self


@dataclass(frozen=True)
class Outside:
    """Mark of a parameter that names data outside the store: the content enters the key, not the path."""


#: A folder outside the store. Relative paths start at the experiment file's folder.
OutsideFolder = Annotated[str, Outside()]


def _short_site(name: str) -> str:
    """The short name of a site that is named as here or as in TransformerLens."""
    site, layer = site_key(name)
    if layer is not None and site in SITE_DIMS:
        raise ValueError(f"names one layer: write {site}, and layer {layer} where layers are named")
    if site not in SITE_DIMS:
        near = difflib.get_close_matches(site, SITE_DIMS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"no such site: {name}.{hint} Sites: {', '.join(SITE_DIMS)}")
    return site


#: The name of a site, short or as TransformerLens has it (``attn.hook_q``), which is kept as the short one.
SiteName = Annotated[str, AfterValidator(_short_site)]


@dataclass(frozen=True)
class Revision:
    """Mark of a parameter that names a revision of a hub model: the commit enters the key, not the name.

    The step is given the commit.

    Attributes:
        of: the parameter that names the model; where that is None, nothing is looked up.
    """

    of: str


#: A branch, a tag or a commit of the hub model that the parameter ``name`` names.
HubRevision = Annotated[str, Revision(of="name")]


@cache
def outside_fields(params: type[StepParams]) -> tuple[str, ...]:
    """Names of the parameters that name data outside the store."""
    return tuple(
        name
        for name, info in params.model_fields.items()
        if any(isinstance(mark, Outside) for mark in _marks(info.annotation, info.metadata))
    )


@cache
def revision_fields(params: type[StepParams]) -> Mapping[str, str]:
    """Parameters that name a revision of a hub model, each with the parameter that names the model."""
    return {
        name: mark.of
        for name, info in params.model_fields.items()
        for mark in _marks(info.annotation, info.metadata)
        if isinstance(mark, Revision)
    }


def _marks(annotation: Any, metadata: list[Any]) -> list[Any]:
    inner = [mark for option in get_args(annotation) for mark in getattr(option, "__metadata__", ())]
    return [*metadata, *inner]


@dataclass(frozen=True)
class Slot:
    """One input of a step.

    Attributes:
        kind: the kind of artifact that fits.
        gather: take every point of the remaining grid axes as one Dataset with those axes as dims.
    """

    kind: Kind
    gather: bool = False


def gather(kind: Kind) -> Slot:
    """Declare a slot that receives all grid points of a node as one Dataset."""
    return Slot(kind, gather=True)


@dataclass(frozen=True)
class Artifact:
    """What a slot receives when its kind has files: labelled data and the folder with the files."""

    data: xr.Dataset
    folder: Path


@dataclass(frozen=True)
class Output:
    """What a step returns when it leaves files besides its labelled data: a writer for each file name."""

    data: xr.Dataset
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Blocks:
    """Data too large for memory, made in blocks along ``image``.

    Attributes:
        template: dims, coords, dtypes and attrs of the whole; its data variables may be lazy (dask) zeros.
        size: images in a block. The last block may be shorter.
        make: the data of the images in a slice, without coords that do not depend on ``image``. Called once
            a block, in order; after an interruption only for the blocks that are missing. A block is written
            while the next is made: its arrays must not be written to again.
    """

    template: xr.Dataset
    size: int
    make: Callable[[slice], xr.Dataset]

    def load(self) -> xr.Dataset:
        """Make the whole in memory: for a call from Python, where nothing is stored."""
        import xarray as xr

        starts = range(0, self.template.sizes["image"], self.size)
        made = xr.concat([self.make(slice(start, start + self.size)) for start in starts], dim="image")
        variables = self.template.data_vars.items()
        return self.template.assign(
            {name: old.variable.copy(data=made[name].values) for name, old in variables}
        )


@dataclass(frozen=True)
class Step:
    """A declared step: what the plan needs to know of it, and the functions themselves."""

    name: str
    function: Callable[..., Any]
    params: type[StepParams]
    inputs: Mapping[str, Slot]
    output: Kind
    together: Callable[..., Iterable[Any]] | None = None

    @property
    def module(self) -> str:
        """Dotted name of the module that declares the step."""
        return self.function.__module__

    @property
    def is_figure(self) -> bool:
        """Whether an experiment names it with ``figure:`` instead of ``step:``."""
        return self.output is Figure

    @property
    def summary(self) -> str:
        """First line of the step's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @cached_property
    def may_differ(self) -> frozenset[str]:
        """Names of the parameters in which points that are computed together may differ."""
        return may_differ(self.params)


def may_differ(params: type[StepParams]) -> frozenset[str]:
    """Names of the parameters that are marked ``may_differ``."""
    marks = {name: info.json_schema_extra for name, info in params.model_fields.items()}
    return frozenset(
        name for name, mark in marks.items() if isinstance(mark, dict) and mark.get("may_differ")
    )


_REGISTRY: dict[str, Step] = {}


def step(
    *,
    inputs: Mapping[str, Slot | Kind],
    output: Kind,
    together: Callable[..., Iterable[Any]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function as a step. Its signature must be its slots, then ``params``, then ``job``.

    Args:
        inputs: kind of each slot.
        output: kind of what the step returns.
        together: the same computation for several points of a grid that read the same inputs and differ only
            in parameters marked ``may_differ``. Its signature must be the slots, then ``members`` (a sequence
            of ``Member``). It returns or yields, member by member in their order, what the step would return
            for it, or the ``StepError`` for which it has nothing. What is yielded is stored before the next
            is asked for. It must give each member the same bytes in any company: the engine computes with it
            a point that is alone too.

    Raises:
        TypeError: when a signature does not say what the declaration says, when ``together`` comes without
            parameters that may differ or they without it, or when parts of the step's output could not be
            joined.
        ValueError: when the name is taken.
    """
    slots = {name: kind if isinstance(kind, Slot) else Slot(kind) for name, kind in inputs.items()}

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        expected = [*slots, "params", "job"]
        found = list(inspect.signature(function).parameters)
        if found != expected:
            raise TypeError(f"step {function.__name__}: signature is {found}, declaration says {expected}")
        params = params_class(function)
        if issubclass(params, InParts) and ("image" not in output.dims or output.files):
            raise TypeError(
                f"step {function.__name__}: parts are joined along image, and {output.name} has "
                f"{'files' if output.files else 'no such dimension'}"
            )
        _check_together(function.__name__, together, slots, params)
        register(Step(function.__name__, function, params, slots, output, together))
        return function

    return declare


def _check_together(
    name: str, together: Callable[..., Any] | None, slots: Mapping[str, Slot], params: type[StepParams]
) -> None:
    if (together is None) != (not may_differ(params)):
        raise TypeError(f"step {name}: parameters that may_differ and together= need each other")
    if together is not None:
        expected, found = [*slots, "members"], list(inspect.signature(together).parameters)
        if found != expected:
            raise TypeError(f"step {name}: the signature of together is {found}, expected {expected}")


def params_class(function: Callable[..., Any]) -> type[StepParams]:
    """The class that a step's ``params`` argument is annotated with."""
    annotation = function.__annotations__["params"]
    return function.__globals__[annotation] if isinstance(annotation, str) else annotation


def register(declared: Step) -> None:
    """Add a step to the registry; a second step of the same name is refused."""
    other = _REGISTRY.get(declared.name)
    if other is not None and other.module != declared.module:
        raise ValueError(f"step {declared.name!r} is declared in {other.module} and in {declared.module}")
    _REGISTRY[declared.name] = declared


def load_step(name: str) -> Step:
    """Import and return one step by name, without importing the others."""
    if name not in _REGISTRY:
        module = next(module for module in _step_modules() if module.rpartition(".")[2] == name)
        importlib.import_module(module)
    return _REGISTRY[name]


@cache
def all_steps() -> Mapping[str, Step]:
    """Every step and figure of the package, by name, in alphabetical order."""
    for module in _step_modules():
        importlib.import_module(module)
    return dict(sorted(_REGISTRY.items()))


def _step_modules() -> Iterator[str]:
    for package in ("prisma_steps.steps", "prisma_steps.figures"):
        paths = importlib.import_module(package).__path__
        yield from (
            f"{package}.{info.name}" for info in pkgutil.iter_modules(paths) if not info.name.startswith("_")
        )
