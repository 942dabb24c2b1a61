"""What a run left: tensors by site and layer, the same as labelled data, and what they decompose into."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from prisma_steps.models.decomposition import Decomposition
from prisma_steps.models.sites import SiteKey
from prisma_steps.schema import SITE_DIMS, label, site_key

if TYPE_CHECKING:
    from prisma_steps.models.structure import Structure

_RESIDUAL = ("image", "token", "d_model")


class ActivationCache(Mapping[SiteKey, Tensor]):
    """The values of a run.

    ``cache["resid_post", 3]`` is a tensor that gradients flow through, ``cache["resid_post"]`` all kept
    layers of a site as labelled data, ``cache.data`` everything as one Dataset. Labelled data are detached,
    on the CPU, and of the run's dtype, but for bfloat16, which numpy does not know and which becomes float32.
    """

    def __init__(
        self,
        model: Structure,
        values: Mapping[SiteKey, Tensor],
        shape: tuple[int, ...],
        images: xr.Coordinates | None = None,
    ) -> None:
        """Keep ``values`` of a run of ``model`` on inputs [image, *shape] with these labels along image."""
        self._model = model
        self._values = dict(values)
        self._tokens = model.token_coords(shape)
        self._images = images

    @overload
    def __getitem__(self, key: SiteKey) -> Tensor: ...
    @overload
    def __getitem__(self, key: str) -> xr.DataArray: ...
    def __getitem__(self, key: SiteKey | str) -> Tensor | xr.DataArray:
        """A tensor by site and layer, or a site's kept layers with labels.

        Raises:
            KeyError: when the run did not keep it.
        """
        if isinstance(key, tuple):
            return self._values[key]
        site, layer = site_key(key)
        found = self._site(site)
        return found if layer is None else found.sel(layer=layer)

    def __iter__(self) -> Iterator[SiteKey]:
        """Keys in the order in which they were asked for."""
        return iter(self._values)

    def __len__(self) -> int:
        """Number of values."""
        return len(self._values)

    def __repr__(self) -> str:
        """The labelled data, as xarray shows them."""
        return f"<ActivationCache>\n{self.data!r}"

    @property
    def n_images(self) -> int:
        """Images of the run."""
        return len(next(iter(self._values.values())))

    @property
    def data(self) -> xr.Dataset:
        """Every value with labels: ``layer`` follows ``image`` where a site exists in every block.

        ``token`` is the model's sequence. A site has NaN at tokens that it lacks (the embedding at CLS) and
        at layers where it was not kept, and no ``token`` at all where the model pools before it.
        """
        arrays = [self._in_sequence(site) for site in dict.fromkeys(site for site, _ in self)]
        merged = xr.merge(arrays, join="outer", compat="no_conflicts", combine_attrs="drop")
        coords = self._token_coords(merged.token.values) if "token" in merged.dims else {}
        merged = merged if self._images is None else merged.assign_coords(self._images)
        return label(merged.assign_coords(coords | self._class_names(merged.dims)))

    def _in_sequence(self, site: str) -> xr.DataArray:
        """A site without what joins would fill with NaN: a token of several, coordinates along tokens."""
        array = self._site(site)
        array = array.isel(token=0) if self._model.kept_at(site, self._tokens) is None else array
        return array.drop_vars([name for name in array.coords if name not in array.dims])

    def _site(self, site: str) -> xr.DataArray:
        """All kept layers of a site."""
        layers = [layer for kept, layer in self._values if kept == site]
        if not layers:
            raise KeyError(site)
        tokens = self._model.kept_at(site, self._tokens)
        if layers == [None]:
            return self._labelled(site, self._values[site, None], SITE_DIMS[site], tokens)
        stacked = torch.stack([self._values[site, layer] for layer in layers], dim=1)
        first, *others = SITE_DIMS[site]
        return self._labelled(site, stacked, (first, "layer", *others), tokens, layer=layers)

    def _labelled(
        self,
        name: str,
        value: Tensor,
        dims: Sequence[str],
        tokens: np.ndarray | None,
        **coords: Sequence[object] | np.ndarray,
    ) -> xr.DataArray:
        """A tensor with labels; its tokens are at these places of the sequence (None = one pooled token)."""
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
        n_tokens = len(self._tokens["token_kind"])
        known: dict[str, object] = {
            "image": self._image_ids,
            "query_token": np.arange(n_tokens),
            "key_token": np.arange(n_tokens),
            "head": np.arange(self._model.n_heads),
        }
        labels = {dim: known[dim] for dim in dims if dim in known} | self._class_names(dims)
        labels |= self._token_coords(tokens) if "token" in dims else {}
        array = xr.DataArray(value.numpy(), labels | coords, dims, name)
        return label(array.to_dataset())[name]

    def _token_coords(self, tokens: np.ndarray | None) -> dict[str, object]:
        if tokens is None:
            kept = {name: np.array([-1]) for name in self._tokens} | {"token_kind": np.array(["pooled"])}
            return {"token": [-1], **{name: ("token", values) for name, values in kept.items()}}
        return {"token": tokens, **{name: ("token", values[tokens]) for name, values in self._tokens.items()}}

    def _class_names(self, dims: Iterable[Hashable]) -> dict[str, object]:
        names = self._model.class_names
        return {"class_name": ("class", np.array(names))} if "class" in dims and names is not None else {}

    # --- decompositions of the residual stream

    @property
    def tensors(self) -> Decomposition:
        """The decompositions below as tensors that gradients flow through."""
        return Decomposition(self._model, self._values, self._tokens["token_kind"])

    def decompose_residual(self) -> xr.DataArray:
        """What was added to the residual stream until its end: component, image, token, d_model.

        See ``Decomposition.decompose_residual``.
        """
        names = self.tensors.component_names
        dims = ("component", *_RESIDUAL)
        value = self.tensors.decompose_residual()
        return self._labelled("residual_component", value, dims, self._all_tokens, component=names)

    def accumulated_residual(self) -> xr.DataArray:
        """The residual stream before every block: layer, image, token, d_model; n_layers is the end.

        See ``Decomposition.accumulated_residual``.
        """
        value = self.tensors.accumulated_residual()
        return self._labelled(
            "residual_stream", value, ("layer", *_RESIDUAL), self._all_tokens, layer=range(len(value))
        )

    def head_results(self) -> xr.DataArray:
        """What every head adds to the residual stream: layer, head, image, token, d_model.

        See ``Decomposition.head_results``.
        """
        value = self.tensors.head_results()
        return self._labelled(
            "head_result", value, ("layer", "head", *_RESIDUAL), self._all_tokens, layer=range(len(value))
        )

    def neuron_results(self, layer: int, tokens: slice | Sequence[int] = slice(None)) -> xr.DataArray:
        """What every neuron of a layer adds to the residual stream: d_mlp, image, token, d_model.

        See ``Decomposition.neuron_results``.
        """
        value = self.tensors.neuron_results(layer, tokens)
        return self._labelled("neuron_result", value, ("d_mlp", *_RESIDUAL), self._all_tokens[tokens])

    def apply_final_norm(self, parts: xr.DataArray, frozen_scale: bool = True) -> xr.DataArray:
        """What each part contributes to ``ln_final``, at the tokens that it has.

        See ``Decomposition.apply_final_norm``; parts are of the images of the run, at any of its tokens.

        Raises:
            ValueError: when they are of others.
        """
        parts = parts.transpose(..., *_RESIDUAL)
        if not np.array_equal(parts.image, self._image_ids):
            raise ValueError("parts are of other images than the run")
        tokens = parts.token.values
        tensor = torch.from_numpy(parts.values).to(self._model.device, self._model.dtype)
        value = self.tensors.apply_final_norm(tensor, tokens, frozen_scale)
        kept = None if self._model.norm_scope == "pooled" else tokens
        if self._model.norm_scope == "cls":
            kept = tokens[self._tokens["token_kind"][tokens] == "cls"]
        coords = {str(dim): parts[dim].values for dim in parts.dims[:-3] if dim in parts.coords}
        dims = list(map(str, parts.dims))
        return self._labelled("final_norm_contribution", value, dims, kept, **coords)

    @property
    def _image_ids(self) -> np.ndarray:
        if self._images is None or "image" not in self._images:
            return np.arange(self.n_images)
        return self._images["image"].values

    @property
    def _all_tokens(self) -> np.ndarray:
        return np.arange(len(self._tokens["token_kind"]))


def along_image(images: xr.Dataset | xr.DataArray) -> xr.Coordinates:
    """What is known of every image, its id first of all."""
    return images.drop_vars(
        [name for name, coord in images.coords.items() if coord.dims != ("image",)]
    ).coords
