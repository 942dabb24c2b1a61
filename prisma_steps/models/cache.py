"""What a run left: tensors by site and layer, the same as labelled data, and what they decompose into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from prisma_steps.models.sites import SiteError, SiteKey, site_key
from prisma_steps.schema import SITE_DIMS, label

if TYPE_CHECKING:
    from prisma_steps.models.hooked import HookedViT


class ActivationCache(Mapping[SiteKey, Tensor]):
    """The values of a run.

    ``cache["resid_post", 3]`` is a tensor that gradients flow through, ``cache["resid_post"]`` all kept
    layers of a site as labelled data, ``cache.data`` everything as one Dataset.
    """

    def __init__(
        self,
        model: HookedViT,
        values: Mapping[SiteKey, Tensor],
        shape: tuple[int, ...],
        images: xr.Coordinates | None = None,
    ) -> None:
        """Keep ``values`` of a run of ``model`` on inputs [image, *shape] with these labels along image."""
        self._model = model
        self._values = dict(values)
        self._shape = shape
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
        found = self.data[site]
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

        Layers of one site are stacked. Sites that were kept at different layers share their union, with NaN
        where a site was not kept.
        """
        sites: dict[str, list[int | None]] = {}
        for site, layer in self._values:
            sites.setdefault(site, []).append(layer)
        arrays = [self._labelled(site, layers) for site, layers in sites.items()]
        with xr.set_options(arithmetic_join="exact"):
            merged = xr.merge(arrays, join="outer", compat="no_conflicts")
            return label(merged if self._images is None else merged.assign_coords(self._images))

    def _labelled(self, site: str, layers: Sequence[int | None]) -> xr.DataArray:
        values = [self._values[site, layer].detach().cpu() for layer in layers]
        dims = list(SITE_DIMS[site])
        if layers == [None]:
            stacked = values[0]
        else:
            stacked = torch.stack(values, dim=1)
            dims.insert(1, "layer")
        stacked = stacked.float() if stacked.dtype == torch.bfloat16 else stacked
        coords = self._coords(site, dims)
        if "layer" in dims:
            coords["layer"] = np.array(layers)
        return xr.DataArray(stacked.numpy(), coords=coords, dims=dims, name=site)

    def _coords(self, site: str, dims: Sequence[str]) -> dict[str, object]:
        ids = None if self._images is None or "image" not in self._images else self._images["image"].values
        return site_coords(self._model, site, dims, self.n_images, ids, self._shape)

    # --- decompositions of the residual stream

    def decompose_residual(self) -> Float[Tensor, "component image token d_model"]:
        """What was added to the residual stream at the end, by component (``component_names``).

        Sums to ``resid_post`` of the last layer. Needs ``full_embed`` and, of every layer, ``attn_out`` and
        (where there are MLPs) ``mlp_out``.

        Raises:
            SiteError: naming what the run did not keep.
        """
        return torch.stack([self._kept(*key) for key in self._components()])

    def component_names(self) -> list[str]:
        """Names along ``component``: ``embed``, ``attn_0``, ``mlp_0``, …."""
        return [
            "embed" if layer is None else f"{site.removesuffix('_out')}_{layer}"
            for site, layer in self._components()
        ]

    def _components(self) -> list[SiteKey]:
        written = [site for site in ("attn_out", "mlp_out") if site in self._model.sites]
        return [
            ("full_embed", None),
            *((site, layer) for layer in range(self._model.n_layers) for site in written),
        ]

    def accumulated_residual(self) -> Float[Tensor, "layer image token d_model"]:
        """The residual stream before every block and after the last: [n_layers + 1, …].

        Raises:
            SiteError: naming what the run did not keep.
        """
        layers = range(self._model.n_layers)
        return torch.stack(
            [self._kept("resid_pre", layer) for layer in layers] + [self._kept("resid_post", layers[-1])]
        )

    def head_results(self) -> Float[Tensor, "layer head image token d_model"]:
        """What every head adds to the residual stream, after LayerScale; biases are no head's.

        Needs ``z`` of every layer.

        Raises:
            SiteError: naming what the run did not keep.
        """
        return torch.stack([self._head_results(layer) for layer in range(self._model.n_layers)])

    def _head_results(self, layer: int) -> Float[Tensor, "head image token d_model"]:
        output: nn.Linear = self._model.part(layer, "o")
        weight = output.weight.unflatten(1, (self._model.n_heads, -1))
        result = torch.einsum("ithd,mhd->hitm", self._kept("z", layer), weight)
        return result * self._model.layer_scale(layer, "attn")

    def neuron_results(
        self, layer: int, tokens: slice | Sequence[int] = slice(None)
    ) -> Float[Tensor, "d_mlp image token d_model"]:
        """What every neuron of a layer adds to the residual stream, after LayerScale; needs ``mlp_post``.

        Args:
            layer: the block.
            tokens: which tokens; all of a real model rarely fit in memory.

        Raises:
            SiteError: naming what the run did not keep.
        """
        post = self._kept("mlp_post", layer)[:, tokens]
        weight: Tensor = self._model.part(layer, "mlp_out").weight
        return torch.einsum("itn,mn->nitm", post, weight) * self._model.layer_scale(layer, "mlp")

    def apply_final_norm(
        self, parts: Float[Tensor, "*part image token d_model"], frozen_scale: bool = True
    ) -> Float[Tensor, "*part image token d_model"]:
        """What each part contributes to the output of the final norm.

        Args:
            parts: summands of the last residual stream.
            frozen_scale: divide by the standard deviation of the whole stream, kept by the run
                (``resid_post`` of the last layer), without the norm's shift: the map is then linear, and
                contributions plus the shift sum to ``ln_final``. Else apply the norm to each part alone, as
                the logit lens does.

        Raises:
            SiteError: when the run did not keep the last residual stream.
        """
        norm = self._model.final_norm
        if norm is None:
            return parts
        if not frozen_scale:
            return norm(parts)
        if not isinstance(norm, nn.LayerNorm):
            raise SiteError(
                f"the final norm is {type(norm).__name__}, and only a LayerNorm's scale can be frozen"
            )
        last = self._kept("resid_post", self._model.n_layers - 1)
        scale = (last.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
        return (parts - parts.mean(-1, keepdim=True)) * scale * norm.weight

    def _kept(self, site: str, layer: int | None) -> Tensor:
        if (site, layer) not in self._values:
            where = site if layer is None else f"{site} of layer {layer}"
            raise SiteError(f"this needs {where}: name the site when you run the model")
        return self._values[site, layer]


def along_image(images: xr.Dataset | xr.DataArray) -> xr.Coordinates:
    """What is known of every image, its id first of all."""
    return images.drop_vars(
        [name for name, coord in images.coords.items() if coord.dims != ("image",)]
    ).coords


def site_coords(
    model: HookedViT,
    site: str,
    dims: Sequence[str],
    n_images: int,
    images: Sequence[str] | np.ndarray | None,
    shape: Sequence[int],
) -> dict[str, object]:
    """Coordinates of a site's dims but ``layer``: ids, kinds and places of tokens, names of classes."""
    coords: dict[str, object] = {"image": np.arange(n_images) if images is None else np.asarray(images)}
    tokens = model.token_coords(shape)
    size = len(tokens["token_kind"])
    if "token" in dims:
        where = model.kept_at(site, tokens)
        coords["token"] = np.arange(size)[where] if where is not None else np.array([-1])
        for name, values in tokens.items():
            kept = (
                values[where] if where is not None else np.array(["pooled" if name == "token_kind" else -1])
            )
            coords[name] = ("token", kept)
    for dim in ("query_token", "key_token"):
        if dim in dims:
            coords[dim] = np.arange(size)
    if "head" in dims:
        coords["head"] = np.arange(model.n_heads)
    if "class" in dims and model.class_names is not None:
        coords["class_name"] = ("class", np.array(model.class_names))
    return coords
