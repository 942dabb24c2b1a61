"""Files of weights and settings from elsewhere, which nothing is believed about."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prisma_steps.step import StepError

_SHOWN = 8


class FormatError(StepError):
    """A file that holds no dictionary, a damaged one, or one that cannot be represented."""


class Settings:
    """What a JSON file says, asked for by name.

    Attributes:
        file: its name, for messages.
        values: all that it says.
    """

    def __init__(self, file: str, values: Mapping[str, Any]) -> None:
        """Take the settings of ``file``."""
        self.file = file
        self.values = values

    def size(self, name: str) -> int:
        """A whole number above 0.

        Raises:
            FormatError: when there is none.
        """
        found = self.values.get(name)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise FormatError(f"{self.file}: {name} is {found!r}, expected a whole number above 0")
        return found

    def one_of(self, name: str, known: Mapping[Any, Any], default: Any) -> Any:
        """What ``known`` has for a setting, which is ``default`` where the file does not say.

        Raises:
            FormatError: naming the values that are known.
        """
        found = self.values.get(name, default)
        if not isinstance(found, str) or found not in known:
            raise FormatError(
                f"{self.file}: {name} is {found!r}, which is not known here: known are {', '.join(known)}"
            )
        return known[found]

    def must_be(self, name: str, expected: Any, reason: str) -> None:
        """Refuse a setting that is given and is not ``expected``.

        Raises:
            FormatError: with the ``reason``.
        """
        found = self.values.get(name, expected)
        if found != expected:
            raise FormatError(f"{self.file}: {name} is {found!r}: {reason}")


class Tensors:
    """The tensors of a file, each asked for with its shape."""

    def __init__(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        """Take the ``tensors`` of ``file``, whose name messages tell."""
        self.file = file
        self._tensors = tensors
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self._tensors

    def take(self, name: str, *shape: int) -> Float[Tensor, "..."]:
        """A tensor of this shape, in float32.

        Raises:
            FormatError: when it is not there, has another shape, or is not finite.
        """
        if name not in self._tensors:
            held = ", ".join(list(self._tensors)[:_SHOWN]) or "nothing"
            raise FormatError(f"{self.file} lacks the tensor {name} {list(shape)}; it holds {held}")
        found = self._tensors[name]
        if tuple(found.shape) != shape:
            raise FormatError(
                f"{self.file}: {name} has shape {list(found.shape)}, expected {list(shape)} by the settings"
            )
        if not found.isfinite().all():
            raise FormatError(f"{self.file}: {name} holds NaN or infinity: the dictionary is of no use")
        self._taken.add(name)
        return found.float()

    def leave(self, *names: str) -> None:
        """Know tensors that mean nothing, where they are there."""
        self._taken.update(names)

    def check_none_is_left(self) -> None:
        """Refuse tensors that nobody asked for: they would change what the dictionary computes.

        Raises:
            FormatError: naming them.
        """
        left = sorted(self._tensors.keys() - self._taken)
        if left:
            raise FormatError(
                f"{self.file} holds {', '.join(left[:_SHOWN])}, which dictionaries of this architecture do "
                "not have"
            )


def read_settings(file: Path) -> Settings:
    """The object in a JSON file.

    Raises:
        FormatError: when it cannot be read.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{file.name} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise FormatError(f"{file.name} holds {type(values).__name__}, expected settings by name")
    return Settings(file.name, values)


def read_safetensors(file: Path) -> Tensors:
    """The tensors of a safetensors file.

    Raises:
        FormatError: when it is not there, truncated or damaged.
    """
    try:
        return Tensors(file.name, load_file(file))
    except (OSError, SafetensorError, ValueError) as error:
        raise FormatError(
            f"{file.name} cannot be read ({error}): it is missing, truncated or damaged; download it again"
        ) from error


#: How to get at weights that lie in a file which can run code.
_CONVERT = """\
Where you trust it, convert it once, in an environment that has what it was made with:
    import json, torch
    from safetensors.torch import save_file
    found = torch.load("{name}", weights_only=False)
    save_file({{k: v.contiguous() for k, v in found["state_dict"].items()}}, "weights.safetensors")
    json.dump(vars(found["cfg"]), open("config.json", "w"), default=str)  # where there is no config.json
and delete {name}"""


def read_pickle(file: Path) -> Tensors:
    """The tensors of a file that ``torch.save`` wrote: a dict of them, or one under "state_dict".

    Nothing but tensors is unpickled, so that no code of the file can run.

    Raises:
        FormatError: when it holds more than tensors, with a way to convert it; or is truncated or damaged.
    """
    try:
        found = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{file.name} holds more than tensors: reading it could run any code, and is refused. "
            + _CONVERT.format(name=file.name)
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise FormatError(
            f"{file.name} cannot be read ({error}): it is truncated or damaged; download it again"
        ) from error
    weights = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise FormatError(f"{file.name} holds {type(weights).__name__}, expected tensors by name")
    return Tensors(file.name, weights)
