"""A vision transformer of which every site can be read and written, whoever wrote it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from prisma_steps.data.pixels import raw_batch
from prisma_steps.models.attention import watching
from prisma_steps.models.cache import ActivationCache, along_image
from prisma_steps.models.families import UnknownFamily, family_of, find, patches_of, sides
from prisma_steps.models.fast_inference import ComputeDtype, for_inference
from prisma_steps.models.ports import (
    AS_IT_IS,
    CONVOLVED,
    ONE_TOKEN,
    AddedPort,
    InputPort,
    OutputPort,
    Port,
    ResidMidPort,
    ResultPort,
    SlicePort,
    frame_by_frame,
    in_heads,
)
from prisma_steps.models.preprocessing import Preprocessing
from prisma_steps.models.sites import (
    ORDER,
    Hooks,
    SiteError,
    SiteKey,
    Tap,
    check_keys,
    check_site,
    checked,
)
from prisma_steps.models.weights import Weights
from prisma_steps.schema import SITE_DIMS, SITES_WITHOUT_LAYER, site_key
from prisma_steps.step import StepError

#: What is to be replaced, as people write it: a site (in every layer), a site and a layer, or the name that
#: TransformerLens has for either.
NamedHooks: TypeAlias = Mapping[str, Tap] | Mapping[SiteKey, Tap] | Mapping[str | SiteKey, Tap]

#: Images, or clips: as the model takes them, or with labels, as they are stored (``pixels``, 0 to 255).
Pixels: TypeAlias = Tensor | xr.Dataset | xr.DataArray

_NO_HOOKS: Hooks = {}

#: Sites inside the attention function: their way in is the function, not a module.
_IN_ATTENTION = ("attn_scores", "pattern")

#: Sites without a layer that come after all blocks.
_LATE = ("ln_final", "logits")


class InputError(StepError):
    """Pixels that the model does not take."""


class _Stop(Exception):
    """Ends a forward pass whose rest nobody needs."""


class _Given(nn.Module):
    """A block that returns what it was made with, whatever it is given."""

    def __init__(self, value: Tensor, in_tuple: bool) -> None:
        super().__init__()
        self._value = (value, None) if in_tuple else value

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._value


class HookedViT:
    """A frozen or trainable model of ``transformers`` or timm (or a ``ToyViT``) with hooks on every site.

    Nothing is left on the model after a call, also when it fails. Gradients flow through hooks. Sites are
    named as in ``schema.SITE_DIMS`` or as in TransformerLens; values have the dims that are given there.

    Attributes:
        model: the model itself.
        head: makes logits of the model's output, where the model has no head of its own.
        class_names: names of the classes, where they are known.
        preprocessing: how the model's images are prepared; None: they are divided by 255.
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
        self._trunk: nn.Module = find(model, self.family.trunk) or model if self.family.trunk else model
        self._check_table()
        self._parameters = inspect.signature(self.model.forward).parameters

    def _check_table(self) -> None:
        """Refuse a model that is not built as its table says.

        Raises:
            UnknownFamily: naming the entries of the table at which nothing lies.
        """
        table = self.family
        lacking = [name for name in ("blocks", "embed") if find(self._trunk, getattr(table, name)) is None]
        if "blocks" not in lacking:
            parts = ["attention", "o", *(["qkv"] if table.block.qkv else "qkv")]
            named = [name for name in parts if getattr(table.block, name)]
            lacking += [f"block.{name}" for name in named if self.part(0, name) is None]
        if lacking:
            raise UnknownFamily(
                f"{type(self.model).__name__} is not built as prisma_steps/models/families.py says: nothing "
                f"lies at {', '.join(lacking)}. Correct the table for this version of the model"
            )

    def for_inference(self, dtype: ComputeDtype = "float32") -> HookedViT:
        """The same model without gradients, computing in ``dtype`` as fast as the device allows.

        See ``fast_inference.for_inference`` for what that does to outputs.
        """
        fast = for_inference(self.model, dtype)
        return HookedViT(fast, self.head, self.class_names, self.preprocessing)

    # --- what it is

    @property
    def config(self) -> Any:
        """The configuration of the part that holds the blocks; a model without one stands for it."""
        config = getattr(self.model, "config", self.model)
        return getattr(config, "vision_config", config)

    @cached_property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks."""
        return tuple(find(self._trunk, self.family.blocks))

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        """Attention heads of a block."""
        return find(self.config, self.family.n_heads)

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
        return next(iter(self._parameters))

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
            found = find(self._trunk, path) or find(self.model, path)
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

    # --- running it

    def preprocess(self, raw: UInt8[Tensor, "image *frame channel row column"]) -> Tensor:
        """Pixels as they are stored, 0 to 255, as the model takes them: where and of what its weights are.

        Raises:
            InputError: for images or clips that the model is not made for.
        """
        self.check_images(raw.shape[1:])
        raw = raw.to(self.device)
        pixels = raw.float() / 255 if self.preprocessing is None else self.preprocessing(raw)
        return pixels.to(self.dtype)

    def check_images(self, shape: Sequence[int]) -> None:
        """Refuse images or clips [(frame,) channel, row, column] that ``preprocess`` makes no input of.

        Raises:
            InputError: naming what they are and what is expected.
        """
        found, (*before, channels, rows, columns) = tuple(shape), self.input_shape
        accepted = {channels} if self.preprocessing is None else {channels, 1}
        fits = list(found[:-3]) == before and found[-3] in accepted
        if fits and (self.preprocessing is not None or found[-2:] == (rows, columns)):
            return
        size = f"{rows} × {columns} pixels" if self.preprocessing is None else "any size"
        colours = " or ".join(str(number) for number in sorted(accepted))
        kind = f"clips of {before[0]} frames" if before else "still images"
        given = f"clips of {found[0]} frames" if len(found) == 4 else "still images"
        raise InputError(
            f"these are {given} of {found[-3]} channels and {found[-2]} × {found[-1]} pixels; the model "
            f"takes {kind} of {colours} channels and {size}"
        )

    def __call__(self, pixels: Pixels) -> Tensor:
        """Logits [image, class]; of a model without a head what ``output_of`` says."""
        return self._run(self._as_pixels(pixels), _NO_HOOKS)

    def run_with_hooks(self, pixels: Pixels, hooks: NamedHooks) -> Tensor:
        """The output when what each hook returns takes the place of its site's value.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        return self._run(self._as_pixels(pixels), self.named(hooks))

    def run_with_cache(
        self,
        pixels: Pixels,
        sites: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        hooks: NamedHooks = _NO_HOOKS,
    ) -> tuple[Tensor, ActivationCache]:
        """The output, and the value at each site of each layer after any hook on it.

        Args:
            pixels: [image, (frame,) channel, row, column], as the model takes them; or labelled images as
                ``load_images`` leaves them, whose labels the cache then carries.
            sites: sites to keep (None = all).
            layers: layers to keep (None = all).
            hooks: what is to be replaced.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        keys = self.site_keys(list(self.sites) if sites is None else sites, layers)
        values, taps = self._keeping(keys, self.named(hooks))
        prepared = self._as_pixels(pixels)
        output = self._run(prepared, taps)
        return output, self._cache(keys, values, prepared, pixels)

    def read(
        self,
        pixels: Pixels,
        sites: Sequence[str],
        layers: Sequence[int] | None = None,
        hooks: NamedHooks = _NO_HOOKS,
    ) -> ActivationCache:
        """As ``run_with_cache``, without what comes after the last block that is needed.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        keys = self.site_keys(sites, layers)
        values, taps = self._keeping(keys, self.named(hooks))
        prepared = self._as_pixels(pixels)
        self._run(prepared, taps, until=keys)
        return self._cache(keys, values, prepared, pixels)

    def _as_pixels(self, pixels: Pixels) -> Tensor:
        """A tensor as it is; labelled images as ``preprocess`` makes them."""
        if isinstance(pixels, Tensor):
            return pixels
        images = pixels.to_dataset(name="pixels") if isinstance(pixels, xr.DataArray) else pixels
        if "pixels" not in images or images["pixels"].dtype != np.uint8:
            found = str(images["pixels"].dtype) if "pixels" in images else f"{list(images.data_vars)} alone"
            raise InputError(
                f"labelled images must have `pixels` of uint8, 0 to 255, these have {found}. What the model "
                "takes as it is, give as a tensor"
            )
        return self.preprocess(raw_batch(images, slice(None)))

    def _cache(
        self, keys: Sequence[SiteKey], values: Mapping[SiteKey, Tensor], pixels: Tensor, given: Pixels
    ) -> ActivationCache:
        images = None if isinstance(given, Tensor) else along_image(given)
        return ActivationCache(self, {key: values[key] for key in keys}, tuple(pixels.shape[1:]), images)

    def _keeping(
        self, keys: Sequence[SiteKey], replacing: Hooks
    ) -> tuple[dict[SiteKey, Tensor], dict[SiteKey, Tap]]:
        """A place for the values at ``keys``, and hooks that put them there once what replaces them did."""
        values: dict[SiteKey, Tensor] = {}

        def keep(key: SiteKey) -> Tap:
            def tap(value: Tensor) -> Tensor:
                values[key] = replacing[key](value) if key in replacing else value
                return values[key]

            return tap

        return values, {**replacing, **{key: keep(key) for key in keys}}

    def forward_from(
        self,
        layer: int,
        resid_pre: Float[Tensor, "image token d_model"],
        hooks: NamedHooks = _NO_HOOKS,
        shape: Sequence[int] | None = None,
    ) -> Tensor:
        """The output that follows from the residual stream before block ``layer``; ``n_layers`` is the end.

        Args:
            layer: the first block that runs.
            resid_pre: what it is given.
            hooks: what is to be replaced in the blocks that run.
            shape: of the input that the stream is of, where it is not ``input_shape``.

        Raises:
            SiteError: for a site or layer that the model does not have.
            ValueError: when ``layer`` is not in 0 … n_layers.
        """
        if layer not in range(self.n_layers + 1):
            raise ValueError(f"cannot start at layer {layer}: the model has layers 0 to {self.n_layers - 1}")
        named = self.named(hooks)
        early = [key for key in named if (-1 if key[1] is None else key[1]) < layer and key[0] not in _LATE]
        if early:
            raise SiteError(f"{early[0]} comes before layer {layer}, where the run starts")
        # Positions are made of the input's shape alone, so that one blank image stands for all.
        blank = torch.zeros((1, *(shape or self.input_shape)), dtype=self.dtype, device=self.device)
        with self._starting_at(layer, resid_pre):
            return self._run(blank, named)

    @contextmanager
    def hooks(self, hooks: NamedHooks) -> Iterator[HookedViT]:
        """Keep hooks on the model while the context lasts; calls of the model itself see them too."""
        with self._attached(self.named(hooks)):
            yield self

    def named(self, hooks: NamedHooks) -> dict[SiteKey, Tap]:
        """Hooks by the keys of their sites, checked.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        found: dict[SiteKey, Tap] = {}
        for name, tap in hooks.items():
            site, layer = (name, None) if isinstance(name, str) else name
            for key in self.site_keys([site], None if layer is None else [layer]):
                if layer is not None:
                    check_keys([(key[0], layer)], self.sites, self.n_layers)
                found[key] = tap
        return found

    # --- how

    def _run(self, pixels: Tensor, hooks: Hooks, until: Collection[SiteKey] | None = None) -> Any:
        inputs = self._inputs(pixels)
        output_tap = hooks.get(("logits", None))
        with self._attached({key: tap for key, tap in hooks.items() if key[0] != "logits"}):
            try:
                with self._stopping(until):
                    output = self.output_of(self.model(**inputs))
            except _Stop:
                return None
        return output if output_tap is None else checked(output_tap, ("logits", None))(output)

    def output_of(self, returned: Any) -> Tensor:
        """What the model is taken to answer.

        Logits; else an image's embedding; else what the final norm is applied to last: the pooled token, or
        the last hidden state. A tensor that it returns alone.
        """
        if self.head is not None:
            return self.head(returned)
        if isinstance(returned, Tensor):
            return returned
        last = "last_hidden_state" if self.norm_scope == "all" else "pooler_output"
        names = ("logits", "image_embeds", last)
        return next(getattr(returned, name) for name in names if getattr(returned, name, None) is not None)

    def _inputs(self, pixels: Tensor) -> dict[str, Any]:
        self._check_input(pixels)
        inputs = {self.input_name: pixels, **self.family.inputs}
        accepted = {name: value for name, value in inputs.items() if name in self._parameters}
        if (
            tuple(pixels.shape[-2:]) != self.configured_shape[-2:]
            and "interpolate_pos_encoding" in self._parameters
        ):
            accepted["interpolate_pos_encoding"] = True
        return accepted

    def _check_input(self, pixels: Tensor) -> None:
        """Refuse pixels of another shape, unless the model can make positions for theirs.

        Raises:
            InputError: naming both shapes.
        """
        expected, found = self.configured_shape, tuple(pixels.shape[1:])
        if found == expected:
            return
        dims = "(frame, channel, row, column)" if self.is_video else "(channel, row, column)"
        stretches = self.family.any_size(self.config) or "interpolate_pos_encoding" in self._parameters
        if len(found) != len(expected) or found[:-2] != expected[:-2] or not stretches:
            kind = "clips" if self.is_video else "images"
            raise InputError(
                f"pixels have shape {tuple(pixels.shape)}; the model takes {kind}, (image, *{dims}) with "
                f"{dims} = {expected}"
            )
        patch = sides(find(self.config, self.family.patch_size))
        if any(side % size for side, size in zip(found[-2:], patch, strict=True)):
            raise InputError(f"images of {found[-2]} × {found[-1]} pixels are no whole patches of {patch}")

    @contextmanager
    def _attached(self, hooks: Hooks) -> Iterator[None]:
        in_order = sorted(hooks, key=lambda key: (-1 if key[1] is None else key[1], ORDER[key[0]]))
        in_attention: dict[nn.Module, dict[str, Tap]] = {}
        with ExitStack() as stack:
            for site, layer in in_order:
                tap = checked(hooks[site, layer], (site, layer))
                if layer is not None and site in _IN_ATTENTION:
                    in_attention.setdefault(self.part(layer, "attention"), {})[site] = tap
                    continue
                for handle in self._port(site, layer).attach(tap):
                    stack.callback(handle.remove)
            if in_attention:
                stack.enter_context(watching(in_attention))
            yield

    def _port(self, site: str, layer: int | None) -> Port:
        if layer is None:
            return self._outer_port(site)
        block, part, heads = self.blocks[layer], lambda name: self.part(layer, name), in_heads(self.n_heads)
        before_mlp = find(block, self.family.block.ln2)
        if site in ("q", "k", "v"):
            fused = part("qkv")
            return (
                OutputPort(part(site), heads)
                if fused is None
                else SlicePort(fused, "qkv".index(site), self.n_heads)
            )
        simple: dict[str, Callable[[], Port]] = {
            "resid_pre": lambda: InputPort(block),
            "ln1_out": lambda: OutputPort(part("ln1")),
            "z": lambda: InputPort(part("o"), heads),
            "result": lambda: ResultPort(part("o"), self.n_heads),
            "attn_out": lambda: self._added(layer, "attn", () if before_mlp is None else (before_mlp,)),
            "resid_mid": lambda: OutputPort(block) if before_mlp is None else ResidMidPort(before_mlp, block),
            "ln2_out": lambda: OutputPort(part("ln2")),
            "mlp_pre": lambda: OutputPort(part("mlp_gate") or part("mlp_in")),
            "mlp_post": lambda: InputPort(part("mlp_out")),
            "mlp_out": lambda: self._added(layer, "mlp", ()),
            "resid_post": lambda: OutputPort(block),
        }
        return simple[site]()

    def _added(self, layer: int, which: str, readers: tuple[nn.Module, ...]) -> Port:
        """What attention or MLP adds to the stream."""
        block = self.blocks[layer]
        module = find(block, getattr(self.family.block, f"{which}_write"))
        scale = self.part(layer, f"{which}_scale")
        return AddedPort(module, scale, readers, block) if isinstance(scale, Tensor) else OutputPort(module)

    def _outer_port(self, site: str) -> Port:
        if site == "embed":
            frames = None if self.family.frames_first else self.input_shape[0]
            layout = CONVOLVED if frames is None else frame_by_frame(frames)
            return OutputPort(find(self._trunk, self.family.embed), layout)
        if site == "full_embed":
            return InputPort(self.blocks[0])
        norm, scope = self._final_norm
        assert site == "ln_final" and norm is not None, site
        return OutputPort(norm, AS_IT_IS if scope == "all" else ONE_TOKEN)

    @contextmanager
    def _stopping(self, until: Collection[SiteKey] | None) -> Iterator[None]:
        """End the forward pass when all of ``until`` is known (None = never)."""
        if not until or any(site in _LATE for site, _ in until):
            yield
            return
        last = max((-1 if layer is None else layer) for _, layer in until)

        def stop(*_: Any) -> None:
            raise _Stop

        block = self.blocks[max(last, 0)]
        handle = block.register_forward_pre_hook(stop) if last < 0 else block.register_forward_hook(stop)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _starting_at(self, layer: int, resid_pre: Tensor) -> Iterator[None]:
        """Leave out the blocks before ``layer``; the one that follows is given ``resid_pre``."""
        *path, name = self.family.blocks.split(".")
        parent = find(self._trunk, ".".join(path)) if path else self._trunk
        blocks = getattr(parent, name)
        given = _Given(resid_pre, self.family.blocks_return_tuples)
        setattr(parent, name, nn.Sequential(given, *blocks[layer:]))
        try:
            yield
        finally:
            setattr(parent, name, blocks)
