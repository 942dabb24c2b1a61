"""A vision transformer of which every site can be read and written, whoever wrote it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prisma_steps.models.cache import ActivationCache, along_image
from prisma_steps.models.families import find
from prisma_steps.models.fast_inference import for_inference
from prisma_steps.models.inputs import Inputs, Pixels
from prisma_steps.models.sites import (
    Hooks,
    SiteError,
    SiteKey,
    Tap,
    check_keys,
    checked,
)
from prisma_steps.models.splicing import Edit, SparseDictionary, Splice, Splicing, as_splice, by_site
from prisma_steps.models.wiring import attached
from prisma_steps.precision import ComputeDtype

#: What is to be replaced, as people write it: a site (in every layer), a site and a layer, or the name that
#: TransformerLens has for either.
NamedHooks: TypeAlias = Mapping[str, Tap] | Mapping[SiteKey, Tap] | Mapping[str | SiteKey, Tap]

#: Dictionaries, and what is done to their latents, by the site that each writes.
NamedSaes: TypeAlias = Mapping[str, Splice | SparseDictionary] | Mapping[SiteKey, Splice | SparseDictionary]
NamedEdits: TypeAlias = Mapping[str, Edit] | Mapping[SiteKey, Edit]

_NO_HOOKS: Hooks = {}
_NO_EDITS: Mapping[SiteKey, Edit] = {}

#: Sites without a layer that come after all blocks.
_LATE = ("ln_final", "logits")


class _Stop(Exception):
    """Ends a forward pass whose rest nobody needs."""


class _Given(nn.Module):
    """A block that returns what it was made with, whatever it is given."""

    def __init__(self, value: Tensor, in_tuple: bool) -> None:
        super().__init__()
        self._value = (value, None) if in_tuple else value

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._value


class HookedViT(Inputs):
    """A frozen or trainable model of ``transformers`` or timm (or a ``ToyViT``) with hooks on every site.

    Nothing is left on the model after a call, also when it fails. Gradients flow through hooks. Sites are
    named as in ``schema.SITE_DIMS`` or as in TransformerLens; values have the dims that are given there.
    """

    @cached_property
    def _embedded(self) -> dict[Any, Any]:
        """Embeddings of blank images."""
        return {}

    def for_inference(self, dtype: ComputeDtype = "float32") -> HookedViT:
        """The same model without gradients, computing in ``dtype`` as fast as the device allows.

        See ``fast_inference.for_inference`` for what that does to outputs.
        """
        fast = for_inference(self.model, dtype)
        return HookedViT(fast, self.head, self.class_names, self.preprocessing)

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
        named = self._named_from(layer, hooks)
        return self.run_blocks(self.blocks[layer:], resid_pre, shape, named)

    def run_blocks(
        self,
        blocks: Sequence[nn.Module],
        stream: Float[Tensor, "image token d_model"],
        shape: Sequence[int] | None = None,
        hooks: Hooks = _NO_HOOKS,
    ) -> Tensor:
        """The output when ``stream`` goes through ``blocks`` in place of all blocks of the model.

        Args:
            blocks: what runs in front of the final norm: some blocks of the model, or modules like them.
            stream: what the first of them is given.
            shape: of the input that the stream is of, where it is not ``input_shape``.
            hooks: what is to be replaced, checked.
        """
        with self._running(blocks, stream):
            return self._run(self._blank(shape), hooks)

    def read_from(
        self,
        layer: int,
        resid_pre: Float[Tensor, "image token d_model"],
        sites: Sequence[str],
        hooks: NamedHooks = _NO_HOOKS,
        shape: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """The values at ``sites`` of block ``layer``, given the stream before it; no other block runs.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        keys = self.site_keys(sites, [layer])
        values, taps = self._keeping(keys, self._named_from(layer, hooks))
        with self._running(self.blocks[layer:], resid_pre):
            self._run(self._blank(shape), taps, until=keys)
        return {site: values[site, at] for site, at in keys}

    def _named_from(self, layer: int, hooks: NamedHooks) -> dict[SiteKey, Tap]:
        if layer not in range(self.n_layers + 1):
            raise ValueError(f"cannot start at layer {layer}: the model has layers 0 to {self.n_layers - 1}")
        named = self.named(hooks)
        early = [key for key in named if (-1 if key[1] is None else key[1]) < layer and key[0] not in _LATE]
        if early:
            raise SiteError(f"{early[0]} comes before layer {layer}, where the run starts")
        return named

    @contextmanager
    def hooks(self, hooks: NamedHooks) -> Iterator[HookedViT]:
        """Keep hooks on the model while the context lasts; calls of the model itself see them too."""
        with attached(self, self.named(hooks)):
            yield self

    def run_with_saes(
        self, pixels: Pixels, saes: NamedSaes, error_term: bool = False, edits: NamedEdits = _NO_EDITS
    ) -> tuple[Tensor, dict[SiteKey, Tensor]]:
        """The output when what dictionaries make of their sites takes the sites' place, and their latents.

        See ``saes``.

        Raises:
            SpliceError: for a dictionary of another width, site or model.
            SiteError: for a site or layer that the model does not have.
        """
        with self.saes(saes, error_term, edits) as latents:
            return self(pixels), latents

    @contextmanager
    def saes(
        self, saes: NamedSaes, error_term: bool = False, edits: NamedEdits = _NO_EDITS
    ) -> Iterator[dict[SiteKey, Tensor]]:
        """Keep dictionaries in the model while the context lasts; calls of the model itself see them too.

        Later dictionaries read what earlier ones made. Gradients flow through them; for those of latents in a
        frozen model, let an edit return them with ``requires_grad_()``.

        Args:
            saes: autoencoders, and transcoders with their place (``Splice``), by the site that they write.
            error_term: add what a dictionary leaves out, so that unless latents are edited the output is that
                of the plain run, to the bit. It is a constant to gradients, as in SAELens: they flow through
                latents alone. (Marks et al. 2024, arXiv 2403.19647, with whom it is a node of its own, hand
                the gradient behind a dictionary to what is before it, as if there were no dictionary.)
            edits: functions of the latents [image, token, latent] of a site, whose result is decoded.

        Yields:
            The latents that were decoded in the last run, [image, token, latent], with the tokens that the
            dictionary was trained on alone; by the site that it writes.

        Raises:
            SpliceError: for a dictionary of another width, site or model.
            SiteError: for a site or layer that the model does not have.
        """
        splices = {site: as_splice(site, sae) for site, sae in by_site(saes, self.keys_of).items()}
        splicing = Splicing(splices, self, error_term, by_site(edits, self.keys_of))
        with self.hooks(splicing.hooks()):
            yield splicing.latents

    def named(self, hooks: NamedHooks) -> dict[SiteKey, Tap]:
        """Hooks by the keys of their sites, checked.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        return {key: tap for name, tap in hooks.items() for key in self.keys_of(name)}

    def keys_of(self, name: str | SiteKey) -> list[SiteKey]:
        """The sites that a name is of: one of each layer where it says none.

        Raises:
            SiteError: for a site or layer that the model does not have.
        """
        site, layer = (name, None) if isinstance(name, str) else name
        keys = self.site_keys([site], None if layer is None else [layer])
        if layer is not None:
            check_keys([(key[0], layer) for key in keys], self.sites, self.n_layers)
        return keys

    # --- how

    def _run(self, pixels: Tensor, hooks: Hooks, until: Collection[SiteKey] | None = None) -> Any:
        inputs = self._inputs(pixels)
        output_tap = hooks.get(("logits", None))
        with attached(self, {key: tap for key, tap in hooks.items() if key[0] != "logits"}):
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
    def _running(self, blocks: Sequence[nn.Module], stream: Tensor) -> Iterator[None]:
        """Run ``blocks`` in place of the model's; the first of them is given ``stream``."""
        *path, name = self.family.blocks.split(".")
        parent = find(self.trunk, ".".join(path)) if path else self.trunk
        own = getattr(parent, name)
        given = _Given(stream, self.family.blocks_return_tuples)
        setattr(parent, name, nn.Sequential(given, *blocks))
        try:
            with self._embedding_once():
                yield
        finally:
            setattr(parent, name, own)

    @contextmanager
    def _embedding_once(self) -> Iterator[None]:
        """Embed the blank image of a shape once for all runs: its embedding is dropped but for its shape."""
        embed = find(self.trunk, self.family.embed)
        own = embed.forward

        def forward(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
            key = (pixels.shape, pixels.dtype, pixels.device)
            if key not in self._embedded:
                with torch.no_grad():
                    self._embedded[key] = own(pixels, *args, **kwargs)
            return self._embedded[key]

        embed.forward = forward
        try:
            yield
        finally:
            del embed.forward
