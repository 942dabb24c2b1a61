"""Dictionaries in a model's forward pass: what they make of a site takes the site's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prisma_steps.models.sites import ORDER, SiteKey, Tap
from prisma_steps.models.structure import Structure
from prisma_steps.schema import SITE_DIMS
from prisma_steps.step import StepError

#: What is done to the latents of one dictionary before they are decoded.
Edit: TypeAlias = Callable[[Float[Tensor, "image token latent"]], Float[Tensor, "image token latent"]]

T = TypeVar("T")


class SpliceError(StepError):
    """A dictionary that does not fit where it is to be spliced in."""


class DictionaryShape(Protocol):
    """How wide a dictionary is, and what it is: ``autoencoder``, ``transcoder`` or ``crosscoder``."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def d_in(self) -> int: ...  # noqa: D102
    @property
    def d_out(self) -> int: ...  # noqa: D102
    @property
    def n_latents(self) -> int: ...  # noqa: D102


class SparseDictionary(Protocol):
    """What makes latents of activations, and activations of latents; ``sae.Autoencoder`` is one."""

    @property
    def shape(self) -> DictionaryShape: ...  # noqa: D102
    def encode(self, x: Tensor, /) -> Tensor: ...  # noqa: D102
    def decode(self, latents: Tensor, x: Tensor, /) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Splice:
    """A dictionary and the place in a model that it belongs to.

    Attributes:
        dictionary: an autoencoder or a transcoder.
        reads: the site that it makes latents of.
        writes: the site whose value it takes the place of; ``reads`` itself, of an autoencoder.
        tokens: the tokens that it was trained on, all or one kind: others are left as they are.
    """

    dictionary: SparseDictionary
    reads: SiteKey
    writes: SiteKey
    tokens: str = "all"


@dataclass
class Splicing:
    """Several dictionaries in one model, as hooks.

    Attributes:
        latents: of the last run, [image, token, latent] with the tokens of the dictionary alone, by the site
            that is written. They are what was decoded, after any edit, and part of the graph.
    """

    splices: Mapping[SiteKey, Splice]
    model: Structure
    error_term: bool
    edits: Mapping[SiteKey, Edit]
    latents: dict[SiteKey, Tensor] = field(default_factory=dict, init=False)
    _read: dict[SiteKey, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Refuse what does not fit.

        Raises:
            SpliceError: naming the dictionary and the misfit.
        """
        for splice in self.splices.values():
            _check(splice)
        strange = [key for key in self.edits if key not in self.splices]
        if strange:
            raise SpliceError(f"edits: no dictionary is spliced in at {strange[0]}")

    def hooks(self) -> dict[SiteKey, Tap]:
        """The hooks that splice the dictionaries in: a site is written first, and then read by others."""
        readers: dict[SiteKey, list[Splice]] = {}
        for splice in self.splices.values():
            if splice.reads != splice.writes:
                readers.setdefault(splice.reads, []).append(splice)
        keys = dict.fromkeys([*self.splices, *readers])
        return {key: self._tap(self.splices.get(key), readers.get(key, [])) for key in keys}

    def _tap(self, splice: Splice | None, readers: Sequence[Splice]) -> Tap:
        def tap(value: Tensor) -> Tensor:
            written = value if splice is None else self._replaced(splice, value)
            self._read.update({reader.writes: written for reader in readers})
            return written

        return tap

    def _replaced(self, splice: Splice, value: Tensor) -> Tensor:
        """``value`` with the chosen tokens replaced."""
        source = value if splice.reads == splice.writes else self._read.pop(splice.writes, None)
        if source is None:
            raise SpliceError(f"{_named(splice)} reads {_name(splice.reads)}, which this run does not pass")
        chosen = self._chosen(splice, splice.writes, value)
        x = _vectors(source)[:, self._chosen(splice, splice.reads, source)]
        y = _vectors(value)[:, chosen]
        _check_width(splice, x, y)
        made = self._made(splice, x, y)
        if chosen.all():
            return made.to(value.dtype).reshape(value.shape)
        whole = _vectors(value).clone()
        whole[:, chosen] = made.to(value.dtype)
        return whole.reshape(value.shape)

    def _made(
        self,
        splice: Splice,
        x: Float[Tensor, "image token d_in"],
        y: Float[Tensor, "image token d_out"],
    ) -> Float[Tensor, "image token d_out"]:
        """What takes the place of ``y``: ŷ, or with the error term y + (ŷ − ŷ before the edit)."""
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        latents = splice.dictionary.encode(x)
        edit, plain = self.edits.get(splice.writes), None
        if edit is not None:
            with torch.no_grad():  # before the edit, which may be made in place
                plain = splice.dictionary.decode(latents, x) if self.error_term else None
            latents = _edited(edit, latents, splice)
        self.latents[splice.writes] = latents
        y_hat = splice.dictionary.decode(latents, x)
        if not self.error_term:
            return y_hat
        # Not ŷ + (y − ŷ), which rounds: unless latents are edited, the difference is zero to the bit.
        return y.detach() + (y_hat - (y_hat.detach() if plain is None else plain))

    def _chosen(self, splice: Splice, site: SiteKey, value: Tensor) -> Bool[Tensor, " token"]:
        kinds = _token_kinds(self.model, site, value.shape[1])
        chosen = np.ones(len(kinds), dtype=bool) if splice.tokens == "all" else kinds == splice.tokens
        if not chosen.any():
            raise SpliceError(
                f"{_named(splice)} is of {splice.tokens} tokens, and {_name(site)} has only "
                f"{', '.join(dict.fromkeys(kinds.tolist()))}"
            )
        return torch.from_numpy(chosen).to(value.device)


def by_site(
    given: Mapping[str, T] | Mapping[SiteKey, T], keys_of: Callable[[str | SiteKey], Sequence[SiteKey]]
) -> dict[SiteKey, T]:
    """What is given for sites by their names, by their keys.

    Args:
        given: one thing for each site.
        keys_of: the sites of a model that a name is of.

    Raises:
        SpliceError: when a name is of several sites.
    """
    found: dict[SiteKey, T] = {}
    for name, value in given.items():
        keys = keys_of(name)
        if len(keys) != 1:
            raise SpliceError(f"{name!r} names {len(keys)} sites: name one layer for each dictionary")
        found[keys[0]] = value
    return found


def as_splice(site: SiteKey, given: Splice | SparseDictionary) -> Splice:
    """A dictionary with its place, which is ``site`` if it is bare.

    Raises:
        SpliceError: when it belongs to another place, or is a transcoder that does not say where it reads.
    """
    if not isinstance(given, Splice):
        if given.shape.kind == "transcoder":
            raise SpliceError(
                f"a transcoder at {_name(site)}: say what it reads, with Splice(dictionary, reads, writes)"
            )
        return Splice(given, site, site)
    if given.writes != site:
        raise SpliceError(f"{_named(given)} belongs there, and not at {_name(site)}")
    return given


def _check(splice: Splice) -> None:
    """Refuse what cannot be spliced in anywhere.

    Raises:
        SpliceError: saying why.
    """
    shape = splice.dictionary.shape
    if shape.kind == "crosscoder":
        raise SpliceError(
            f"{_named(splice)} is a crosscoder: it reads all its layers at once, of which the later ones are "
            "not known where the first is written. Take one autoencoder for each layer"
        )
    for site, _ in (splice.reads, splice.writes):
        if SITE_DIMS[site][:2] != ("image", "token"):
            raise SpliceError(
                f"site {site!r} has dims {SITE_DIMS[site]}: dictionaries take vectors of tokens"
            )
    if splice.reads != splice.writes and _place(splice.reads) > _place(splice.writes):
        raise SpliceError(f"{_named(splice)} reads {_name(splice.reads)}, which comes later")


def _check_width(splice: Splice, x: Tensor, y: Tensor) -> None:
    shape = splice.dictionary.shape
    if (x.shape[-1], y.shape[-1]) != (shape.d_in, shape.d_out):
        raise SpliceError(
            f"{_named(splice)} is {shape.d_in} → {shape.d_out} wide, and {_name(splice.reads)} of this model "
            f"{x.shape[-1]}, {_name(splice.writes)} {y.shape[-1]}: it belongs to another model"
        )
    if x.shape[1] != y.shape[1]:
        raise SpliceError(
            f"{_name(splice.reads)} has {x.shape[1]} of these tokens, {_name(splice.writes)} {y.shape[1]}"
        )


def _edited(edit: Edit, latents: Tensor, splice: Splice) -> Tensor:
    edited = edit(latents)
    if edited.shape != latents.shape:
        raise SpliceError(
            f"the edit at {_name(splice.writes)} returned {tuple(edited.shape)}, expected "
            f"{tuple(latents.shape)}: image, token, latent"
        )
    return edited


def _vectors(value: Tensor) -> Float[Tensor, "image token width"]:
    """One vector a token: heads, where there are any, side by side."""
    return value.flatten(2)


def _token_kinds(model: Structure, key: SiteKey, n_tokens: int) -> np.ndarray:
    """Kinds of the tokens of a site; images of another size than configured have other numbers of patches."""
    places = model.token_coords()
    kept = model.kept_at(key[0], places)
    if kept is None:
        return np.array(["pooled"])
    kinds = places["token_kind"][kept]
    before = kinds[kinds != "patch"]
    return np.array([*before, *["patch"] * (n_tokens - len(before))])


def _place(key: SiteKey) -> tuple[int, int]:
    """Where a site comes in a forward pass."""
    site, layer = key
    late = ORDER[site] > ORDER["resid_post"]
    return (10**9 if late else -1) if layer is None else layer, ORDER[site]


def _name(key: SiteKey) -> str:
    site, layer = key
    return site if layer is None else f"{site} of layer {layer}"


def _named(splice: Splice) -> str:
    return f"the dictionary of {_name(splice.writes)}"
