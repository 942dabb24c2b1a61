"""Ports: how a site is read and written with hooks on the modules of a model that we did not write.

A port hands the value of its site to a tap and lets what the tap returns go on in its place. Written back as
it was read, a value changes no bit of what follows. Ports of one block are attached in the order of a forward
pass (``sites.ORDER``), so that a site is read after what was written before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prisma_steps.models.sites import Tap


class Port(Protocol):
    """A way to a site."""

    def attach(self, tap: Tap) -> Iterator[RemovableHandle]:
        """Have ``tap`` see and replace the value of the site from now on, until the handles are removed."""
        ...


@dataclass(frozen=True)
class Layout:
    """How a module holds a value whose dims are those of the schema: the way there and the way back."""

    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]


AS_IT_IS = Layout(lambda value: value, lambda value, _old: value)

#: [image, d_model, *grid], as a convolution leaves patches.
CONVOLVED = Layout(
    lambda value: value.flatten(2).transpose(1, 2) if value.ndim > 3 else value,
    lambda value, old: value.transpose(1, 2).unflatten(2, old.shape[2:]) if old.ndim > 3 else value,
)

#: [image, d_model], where only one token is left.
ONE_TOKEN = Layout(lambda value: value.unsqueeze(1), lambda value, _old: value.squeeze(1))


def frame_by_frame(n_frames: int) -> Layout:
    """[image × frame, patch, d_model], of which the sequence takes all frames of a patch together."""

    def to(value: Tensor) -> Tensor:
        return value.unflatten(0, (-1, n_frames)).transpose(1, 2).flatten(1, 2)

    def back(value: Tensor, _old: Tensor) -> Tensor:
        return value.unflatten(1, (-1, n_frames)).transpose(1, 2).flatten(0, 1)

    return Layout(to, back)


def in_heads(n_heads: int) -> Layout:
    """[image, token, head × d_head]."""
    return Layout(lambda value: value.unflatten(-1, (n_heads, -1)), lambda value, _old: value.flatten(-2))


def _first(output: Any) -> Tensor:
    """The hidden states that a module returns, alone or before others."""
    return output[0] if isinstance(output, tuple) else output


def _with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _goes_on_by_itself(written: Tensor, value: Tensor, held: Tensor) -> bool:
    """Whether nothing need be returned: nothing was written, and gradients would reach what the tap saw."""
    return written is value and (value is held or not value.requires_grad)


@dataclass(frozen=True)
class OutputPort:
    """What a module returns."""

    module: nn.Module
    layout: Layout = AS_IT_IS

    def attach(self, tap: Tap) -> Iterator[RemovableHandle]:
        """Hook the module's output."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            held = _first(output)
            value = self.layout.to(held)
            written = tap(value)
            if _goes_on_by_itself(written, value, held):
                return None
            return _with_first(output, self.layout.back(written, held))

        yield self.module.register_forward_hook(hook)


@dataclass(frozen=True)
class InputPort:
    """What a module is given."""

    module: nn.Module
    layout: Layout = AS_IT_IS

    def attach(self, tap: Tap) -> Iterator[RemovableHandle]:
        """Hook the module's first argument."""

        def hook(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            value = self.layout.to(args[0])
            written = tap(value)
            if _goes_on_by_itself(written, value, args[0]):
                return None
            return (self.layout.back(written, args[0]), *args[1:])

        yield self.module.register_forward_pre_hook(hook)


@dataclass(frozen=True)
class SlicePort:
    """A third of what one projection of q, k and v together returns.

    Attributes:
        place: 0 for q, 1 for k, 2 for v.
    """

    module: nn.Module
    place: int
    n_heads: int

    def attach(self, tap: Tap) -> Iterator[RemovableHandle]:
        """Hook the projection's output."""

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            parts = list(output.chunk(3, dim=-1))
            value = parts[self.place].unflatten(-1, (self.n_heads, -1))
            written = tap(value)
            if _goes_on_by_itself(written, value, output):
                return None
            parts[self.place] = written.flatten(-2)
            return torch.cat(parts, dim=-1)

        yield self.module.register_forward_hook(hook)


@dataclass(frozen=True)
class ResultPort:
    """What each head writes to the residual stream, which the model itself only forms summed.

    Where gradients are wanted, they flow through the value and not also through the sum beside it.

    Attributes:
        module: the output projection, whose input is the heads side by side.
    """

    module: nn.Linear
    n_heads: int

    def attach(self, tap: Tap) -> Iterator[RemovableHandle]:
        """Hook the projection; its output changes by what the heads' writes change by."""

        def hook(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            weight = module.weight.unflatten(1, (self.n_heads, -1))
            z = args[0].unflatten(-1, (self.n_heads, -1))
            value = torch.einsum("ithd,mhd->ithm", z, weight)
            written = tap(value)
            if value.requires_grad:
                bias = 0 if module.bias is None else module.bias - module.bias.detach()
                return output.detach() + (written - value.detach()).sum(-2) + bias
            return None if written is value else output + (written - value).sum(-2)

        yield self.module.register_forward_hook(hook)


@dataclass(frozen=True)
class AddedPort:
    """What is added to the residual stream, where that is a module's output times a parameter of the block.

    The model multiplies and adds outside of any module, so a write is made up for further on. Where gradients
    are wanted, they flow through the value and not also through the module's output beside it.

    Attributes:
        readers: modules that are given the stream afterwards.
        block: its output is the stream at the end.
    """

    module: nn.Module
    scale: Tensor
    readers: tuple[nn.Module, ...]
    block: nn.Module

    def attach(self, tap: Tap) -> Iterator[RemovableHandle]:
        """Hook the module, and what comes after it."""
        change: list[Tensor] = []

        def read(_module: nn.Module, _args: Any, output: Any) -> Any:
            change.clear()
            value = self.scale * _first(output)
            written = tap(value)
            if written is not value or value.requires_grad:
                change.append(written - value.detach())
            return _with_first(output, _first(output).detach()) if value.requires_grad else None

        def follow(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            return (args[0] + change[0], *args[1:]) if change else None

        yield self.module.register_forward_hook(read)
        for reader in self.readers:
            yield reader.register_forward_pre_hook(follow)
        yield _changed_output(self.block, change)


@dataclass(frozen=True)
class ResidMidPort:
    """The residual stream between attention and MLP, which two take: the norm, and the sum at the end.

    Attributes:
        norm: the norm in front of the MLP.
        block: its output is the stream at the end.
    """

    norm: nn.Module
    block: nn.Module

    def attach(self, tap: Tap) -> Iterator[RemovableHandle]:
        """Hook the norm's input, and add to the block's output what was written."""
        change: list[Tensor] = []

        def hook(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            change.clear()
            written = tap(args[0])
            if written is args[0]:
                return None
            change.append(written - args[0])
            return (written, *args[1:])

        yield self.norm.register_forward_pre_hook(hook)
        yield _changed_output(self.block, change)


def _changed_output(block: nn.Module, change: list[Tensor]) -> RemovableHandle:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return _with_first(output, _first(output) + change[0]) if change else None

    return block.register_forward_hook(hook)
