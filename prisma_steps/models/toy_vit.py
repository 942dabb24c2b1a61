"""A small pre-norm vision transformer of which every site can be read and written.

The architecture of Dosovitskiy et al. 2020 (arXiv 2010.11929): patches, a CLS token first, learned positions,
blocks of attention and MLP, a head on CLS; also without MLPs or without LayerNorm, as the "mice ViTs" of
Prisma (arXiv 2504.19475) are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from prisma_steps.models.attention import Attention
from prisma_steps.models.sites import Hooks, SiteKey, at, check_keys, check_site
from prisma_steps.schema import SITE_DIMS, SITES_WITHOUT_LAYER

_NO_HOOKS: Hooks = {}


@dataclass(frozen=True)
class ToyViTConfig:
    """Sizes of a ``ToyViT``. Images are square.

    Raises:
        ValueError: when the patches do not tile the image or the heads do not share out ``d_model``.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int
    patch_size: int
    image_size: int
    n_channels: int
    n_classes: int
    attention_only: bool = False
    layer_norm: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide."""
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide the image size {self.image_size}")
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide d_model {self.d_model}")

    @property
    def n_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2


class Block(nn.Module):
    """One layer: what attention reads from the stream and adds to it, then the MLP likewise."""

    def __init__(self, config: ToyViTConfig) -> None:
        """Make the layer; parts that the configuration leaves out are None."""
        super().__init__()
        self.ln1 = nn.LayerNorm(config.d_model) if config.layer_norm else None
        self.attn = Attention(config.d_model, config.n_heads)
        has_mlp = not config.attention_only
        self.ln2 = nn.LayerNorm(config.d_model) if config.layer_norm and has_mlp else None
        self.mlp_in = nn.Linear(config.d_model, config.d_mlp) if has_mlp else None
        self.mlp_out = nn.Linear(config.d_mlp, config.d_model) if has_mlp else None

    def forward(
        self, resid: Float[Tensor, "image token d_model"], hooks: Hooks, layer: int
    ) -> Float[Tensor, "image token d_model"]:
        """The residual stream after the block, given the one before it."""
        resid_pre = at(hooks, "resid_pre", layer, resid)
        read = resid_pre if self.ln1 is None else at(hooks, "ln1_out", layer, self.ln1(resid_pre))
        attn_out = at(hooks, "attn_out", layer, self.attn(read, hooks, layer))
        resid_mid = at(hooks, "resid_mid", layer, resid_pre + attn_out)
        return at(hooks, "resid_post", layer, self._add_mlp(resid_mid, hooks, layer))

    def _add_mlp(
        self, resid_mid: Float[Tensor, "image token d_model"], hooks: Hooks, layer: int
    ) -> Float[Tensor, "image token d_model"]:
        if self.mlp_in is None or self.mlp_out is None:
            return resid_mid
        read = resid_mid if self.ln2 is None else at(hooks, "ln2_out", layer, self.ln2(resid_mid))
        mlp_pre = at(hooks, "mlp_pre", layer, self.mlp_in(read))
        mlp_post = at(hooks, "mlp_post", layer, F.gelu(mlp_pre))
        return resid_mid + at(hooks, "mlp_out", layer, self.mlp_out(mlp_post))


class ToyViT(nn.Module):
    """A vision transformer small enough to train on a CPU. Sites are named as in ``schema.SITE_DIMS``.

    Sites of parts that the configuration leaves out do not exist: those of the MLP and ``ln2_out`` in an
    attention-only model, ``ln1_out``, ``ln2_out`` and ``ln_final`` in one without LayerNorm.
    """

    def __init__(self, config: ToyViTConfig) -> None:
        """Make the model with torch's own initial weights; ``initialised`` gives seeded ones."""
        super().__init__()
        self.config = config
        self.patch = nn.Linear(config.n_channels * config.patch_size**2, config.d_model)
        self.cls = nn.Parameter(torch.zeros(config.d_model))
        self.positions = nn.Parameter(torch.zeros(1 + config.n_patches, config.d_model))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_final = nn.LayerNorm(config.d_model) if config.layer_norm else None
        self.head = nn.Linear(config.d_model, config.n_classes)

    @classmethod
    def initialised(cls, config: ToyViTConfig, generator: torch.Generator) -> ToyViT:
        """A model with random weights drawn from ``generator`` alone.

        Matrices are Glorot-uniform, biases zero, the CLS token N(0, 0.02²). Positions are N(0, 0.5²), on the
        scale of embedded patches: at the customary 0.02 they drown in it for the first epochs.
        """
        with torch.device("meta"):
            model = cls(config)
        model.to_empty(device="cpu")
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.normal_(model.cls, std=0.02, generator=generator)
        nn.init.normal_(model.positions, std=0.5, generator=generator)
        return model

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.config.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.config.d_model

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.config.image_size // self.config.patch_size
        return side, side

    @property
    def sites(self) -> dict[str, bool]:
        """The sites that the model has, and whether each exists once a layer."""
        missing = set()
        if self.config.attention_only:
            missing |= {"ln2_out", "mlp_pre", "mlp_post", "mlp_out"}
        if not self.config.layer_norm:
            missing |= {"ln1_out", "ln2_out", "ln_final"}
        return {site: site not in SITES_WITHOUT_LAYER for site in SITE_DIMS if site not in missing}

    def site_keys(self, sites: Sequence[str], layers: Sequence[int] | None = None) -> list[SiteKey]:
        """The key of every site in every one of ``layers`` (None = all), or its one key where it exists once.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        known, every = self.sites, range(self.n_layers) if layers is None else layers
        for site in sites:
            check_site(site, known)
        keys: list[SiteKey] = [
            (site, layer) for site in sites for layer in (every if known[site] else [None])
        ]
        check_keys(keys, known, self.n_layers)
        return keys

    def token_coords(self) -> dict[str, np.ndarray]:
        """Kind and place on the patch grid of every token; CLS is at row and column −1."""
        row, column = np.indices(self.patch_grid).reshape(2, -1)
        return {
            "token_kind": np.array(["cls"] + ["patch"] * row.size),
            "patch_row": np.concatenate([[-1], row]),
            "patch_col": np.concatenate([[-1], column]),
        }

    def forward(self, pixels: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image class"]:
        """The logits of images with pixels in [0, 1]."""
        return self._run(pixels, _NO_HOOKS)

    def run_with_hooks(
        self, pixels: Float[Tensor, "image channel row column"], hooks: Hooks
    ) -> Float[Tensor, "image class"]:
        """The logits when each hook's value takes the place of its site's. Nothing is left on the model.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        check_keys(hooks, self.sites, self.n_layers)
        return self._run(pixels, hooks)

    def run_with_cache(
        self,
        pixels: Float[Tensor, "image channel row column"],
        sites: Sequence[str],
        layers: Sequence[int] | None = None,
        hooks: Hooks = _NO_HOOKS,
    ) -> tuple[Float[Tensor, "image class"], dict[SiteKey, Tensor]]:
        """The logits, and the value at each site of each layer (None = all) after any hook on it.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        cache: dict[SiteKey, Tensor] = {}

        def keep(key: SiteKey, value: Tensor) -> Tensor:
            cache[key] = hooks[key](value) if key in hooks else value
            return cache[key]

        reading = {key: lambda value, key=key: keep(key, value) for key in self.site_keys(sites, layers)}
        logits = self.run_with_hooks(pixels, {**hooks, **reading})
        return logits, cache

    def forward_from(
        self, layer: int, resid_pre: Float[Tensor, "image token d_model"], hooks: Hooks = _NO_HOOKS
    ) -> Float[Tensor, "image class"]:
        """The logits that follow from the residual stream before block ``layer``; ``n_layers`` is the end.

        Raises:
            SiteError: for a site or layer that the model does not have.
            ValueError: when ``layer`` is not in 0 … n_layers.
        """
        if layer not in range(self.n_layers + 1):
            raise ValueError(f"cannot start at layer {layer}: the model has layers 0 to {self.n_layers - 1}")
        check_keys(hooks, self.sites, self.n_layers)
        return self._finish(layer, resid_pre, hooks)

    def _run(
        self, pixels: Float[Tensor, "image channel row column"], hooks: Hooks
    ) -> Float[Tensor, "image class"]:
        return self._finish(0, self._embed(pixels, hooks), hooks)

    def _embed(
        self, pixels: Float[Tensor, "image channel row column"], hooks: Hooks
    ) -> Float[Tensor, "image token d_model"]:
        self._check_shape(pixels)
        size = self.config.patch_size
        patches = pixels.unfold(2, size, size).unfold(3, size, size)
        flat = patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
        embed = at(hooks, "embed", None, self.patch(flat))
        cls = self.cls.to(embed.dtype).expand(len(embed), 1, -1)
        return at(hooks, "full_embed", None, torch.cat([cls, embed], dim=1) + self.positions)

    def _check_shape(self, pixels: Tensor) -> None:
        size = self.config.image_size
        expected = (self.config.n_channels, size, size)
        if tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"pixels have shape {tuple(pixels.shape)}; the model takes (image, channel, row, column) "
                f"with (channel, row, column) = {expected}"
            )

    def _finish(
        self, layer: int, resid: Float[Tensor, "image token d_model"], hooks: Hooks
    ) -> Float[Tensor, "image class"]:
        for number in range(layer, self.n_layers):
            resid = self.blocks[number](resid, hooks, number)
        if self.ln_final is not None:
            resid = at(hooks, "ln_final", None, self.ln_final(resid))
        return at(hooks, "logits", None, self.head(resid[:, 0]))
