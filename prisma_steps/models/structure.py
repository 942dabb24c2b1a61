"""What a vision transformer consists of: its blocks and their parts, its sizes, sites and tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prisma_steps.models.families import UnknownFamily, family_of, find, patches_of, sides
from prisma_steps.models.preprocessing import Preprocessing
from prisma_steps.models.sites import SiteKey, check_keys, check_site
from prisma_steps.models.weights import Weights
from prisma_steps.schema import SITE_DIMS, SITES_WITHOUT_LAYER, site_key


class Structure:
    """A model, with its parts found by the table of its family; ``HookedViT`` runs it.

    Attributes:
        model: the model itself.
        family: where it keeps its parts.
        trunk: the model without its head.
        head: makes logits of the model's output, where the model has no head of its own.
        class_names: names of the classes, where they are known.
        preprocessing: how the model's images are prepared; None: they are divided by 255.
        parameters: the arguments of the model's forward pass.
        n_heads: attention heads of a block.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module | None = None,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """Find the parts of ``model``.

        Raises:
            UnknownFamily: when no table says where they are.
        """
        self.model: Any = model
        self.head = head
        self.class_names = None if class_names is None else tuple(class_names)
        self.preprocessing = preprocessing
        self.family = family_of(model)
        self.trunk: nn.Module = find(model, self.family.trunk) or model if self.family.trunk else model
        self._check_table()
        self.parameters = inspect.signature(self.model.forward).parameters
        # Of timm's models the first block says it, in whose place another may run later.
        self.n_heads: int = find(self.config, self.family.n_heads)

    def _check_table(self) -> None:
        """Refuse a model that is not built as its table says.

        Raises:
            UnknownFamily: naming the entries of the table at which nothing lies.
        """
        table = self.family
        lacking = [name for name in ("blocks", "embed") if find(self.trunk, getattr(table, name)) is None]
        if "blocks" not in lacking:
            parts = ["attention", "o", *(["qkv"] if table.block.qkv else "qkv")]
            named = [name for name in parts if getattr(table.block, name)]
            lacking += [f"block.{name}" for name in named if self.part(0, name) is None]
        if lacking:
            raise UnknownFamily(
                f"{type(self.model).__name__} is not built as prisma_steps/models/families.py says: nothing "
                f"lies at {', '.join(lacking)}. Correct the table for this version of the model"
            )

    @property
    def config(self) -> Any:
        """The configuration of the part that holds the blocks; a model without one stands for it."""
        config = getattr(self.model, "config", self.model)
        return getattr(config, "vision_config", config)

    @cached_property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks."""
        return tuple(find(self.trunk, self.family.blocks))

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return find(self.config, self.family.d_model)

    @property
    def d_head(self) -> int:
        """Width of a head."""
        output = self.part(0, "o")
        return (self.d_model if output is None else output.in_features) // self.n_heads

    @property
    def d_mlp(self) -> int:
        """Neurons of an MLP; 0 where there is none."""
        last = self.part(0, "mlp_out")
        return 0 if last is None else last.in_features

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 of a model without a head."""
        return getattr(self.unembedding, "out_features", 0)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[(frame,) channel, row, column] of images once they are prepared."""
        configured = self.configured_shape
        return configured if self.preprocessing is None else (*configured[:-2], *self.preprocessing.size)

    @property
    def configured_shape(self) -> tuple[int, ...]:
        """[(frame,) channel, row, column] that the configuration asks for."""
        config, family = self.config, self.family
        still = (find(config, family.n_channels), *sides(find(config, family.image_size)))
        frames = 1 if family.frames is None else family.frames(config)[0]
        return (frames, *still) if self.is_video else still

    @property
    def input_name(self) -> str:
        """The argument of the model's forward pass that takes the pixels: its first."""
        return next(iter(self.parameters))

    @property
    def is_video(self) -> bool:
        """Whether it takes clips, [image, frame, channel, row, column]."""
        frames = self.family.frames
        return frames is not None and frames(self.config)[0] > 1

    def part(self, layer: int, name: str) -> Any:
        """A part of a block by its name in ``families.BlockTable``; None where the block has none."""
        found = find(self.blocks[layer], getattr(self.family.block, name))
        return None if isinstance(found, nn.Identity) else found

    @cached_property
    def _final_norm(self) -> tuple[nn.Module | None, str]:
        """The final norm, and what it is applied to."""
        if self.family.head_skips_norm and find(self.model, self.family.head) is not None:
            return None, "all"
        for path, scope in self.family.ln_final.items():
            found = find(self.trunk, path) or find(self.model, path)
            if found is not None and not isinstance(found, nn.Identity):
                return found, scope
        return None, "all"

    @property
    def final_norm(self) -> nn.Module | None:
        """The final norm."""
        return self._final_norm[0]

    @property
    def norm_scope(self) -> str:
        """What the final norm is of: ``all`` tokens, ``cls``, or one ``pooled``, the mean of the patches."""
        return self._final_norm[1]

    @property
    def unembedding(self) -> nn.Module | None:
        """The matrix that makes logits of features, where the model has one."""
        found = self.head if self.head is not None else find(self.model, self.family.head)
        return None if isinstance(found, nn.Identity) else found  # a classifier of no classes

    @property
    def weights(self) -> Weights:
        """The matrices and biases, named and turned as in TransformerLens."""
        return Weights(self)

    @property
    def sites(self) -> dict[str, bool]:
        """The sites that the model has, and whether each exists once a layer."""
        absent = set(self.family.missing)
        needs = {
            "ln1": {"ln1_out"},
            "ln2": {"ln2_out"},
            "mlp_out": {"ln2_out", "mlp_pre", "mlp_post", "mlp_out"},
        }
        for part, sites in needs.items():
            absent |= sites if self.part(0, part) is None else set()
        absent |= {"ln_final"} if self.final_norm is None else set()
        absent |= {"logits"} if self.unembedding is None else set()
        return {site: site not in SITES_WITHOUT_LAYER for site in SITE_DIMS if site not in absent}

    def site_keys(self, sites: Sequence[str], layers: Sequence[int] | None = None) -> list[SiteKey]:
        """The key of every site in every one of ``layers`` (None = all), or its one key where it exists once.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        known, every = self.sites, range(self.n_layers) if layers is None else layers
        keys: list[SiteKey] = []
        for name in sites:
            site, layer = site_key(name)
            check_site(site, known, self.family.missing.get(site, ""))
            wanted = [layer] if layer is not None else every if known[site] else [None]
            keys += [(site, at) for at in wanted]
        check_keys(keys, known, self.n_layers)
        return keys

    def token_coords(self, shape: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Kind and place of every token; tokens that are no patches are at −1.

        Args:
            shape: [(frame,) channel, row, column] of the input; ``input_shape`` if None.
        """
        prefix = self.family.prefix(self.config)
        grid = patches_of(self.config, self.family, tuple(shape or self.input_shape))
        places = np.indices(grid)
        if not self.family.frames_first:
            places = np.moveaxis(places, 1, -1)
        frame, row, column = places.reshape(3, -1)
        before = np.full(len(prefix), -1)
        coords = {
            "token_kind": np.array([*prefix, *["patch"] * row.size]),
            "patch_row": np.concatenate([before, row]),
            "patch_col": np.concatenate([before, column]),
        }
        return coords | ({"patch_frame": np.concatenate([before, frame])} if self.is_video else {})

    def kept_at(self, site: str, tokens: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Which tokens of the sequence a site has; None where it has one token that is made of several."""
        kinds = tokens["token_kind"]
        if site == "embed":
            return np.flatnonzero(kinds == "patch")
        scope = self.norm_scope if site == "ln_final" else "all"
        if scope == "pooled":
            return None
        return np.flatnonzero(kinds == "cls") if scope == "cls" else np.arange(len(kinds))

    def layer_scale(self, layer: int, which: str) -> Tensor | float:
        """What the output of attention (``attn``) or MLP (``mlp``) is multiplied by before it is added."""
        module, scale = (self.part(layer, f"{which}_{end}") for end in ("write", "scale"))
        if isinstance(scale, Tensor | float):
            return scale
        return getattr(module, "lambda1", getattr(module, "gamma", 1.0))
