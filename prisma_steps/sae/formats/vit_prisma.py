"""ViT-Prisma: ``config.json`` and ``weights.pt`` (https://github.com/Prisma-Multimodal/ViT-Prisma).

W_enc is [d_in, d_sae] and W_dec [d_sae, d_in], as here; b_dec is always taken off the input. Its transcoders
take b_dec of their own off the input, and add b_dec_out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.formats.building import build, core, known_coefficient, sparsity_fact
from prisma_steps.sae.formats.files import (
    FormatError,
    Settings,
    Tensors,
    read_pickle,
    read_safetensors,
    read_settings,
)
from prisma_steps.sae.formats.published import Published, folded, hooks_of, place_of

CONFIG = "config.json"
WEIGHTS = "weights.pt"
SAFE_WEIGHTS = "weights.safetensors"

_OURS: Mapping[str, str] = {"standard": "relu", "gated": "gated"}
_WRITTEN = ("relu", "gated", "topk")
_NORMALISE: Mapping[str, Any] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "token_norm",
}
_FUNCTIONS: Mapping[str, str] = {"relu": "relu", "topk": "topk"}


def read(folder: Path) -> Published:
    """The dictionary in a folder, converted to float32.

    Raises:
        FormatError: naming the file and what is wrong in it, what would need unpickling, or what cannot be
            represented here.
    """
    settings, tensors = read_settings(folder / CONFIG), _tensors(folder)
    name = settings.one_of("architecture", _OURS, "standard")
    transcodes = bool(settings.values.get("is_transcoder", False))
    if settings.one_of("activation_fn_str", _FUNCTIONS, "relu") == "topk":
        if name != "relu":
            raise FormatError(
                f"{settings.file}: a {name} dictionary with TopK, which is no architecture here"
            )
        name = "topk"
    if transcodes and name == "gated":
        raise FormatError(f"{settings.file}: a gated transcoder, which ViT-Prisma has not")
    shape, given = _shape(settings, transcodes), _settings(settings, name)
    weights = _weights(tensors, shape, name)
    place = place_of(_hook(settings), _target(settings) if transcodes else None, _tokens(settings))
    model = {"model_name": settings.values["model_name"]} if settings.values.get("model_name") else {}
    return Published(build(name, shape, given, weights), place, {**model, **sparsity_fact(name, given)})


def _tensors(folder: Path) -> Tensors:
    """Safe ones where they lie there; else ``weights.pt``, or the one file of its kind."""
    if (folder / SAFE_WEIGHTS).is_file():
        return read_safetensors(folder / SAFE_WEIGHTS)
    others = sorted(folder.glob("*.pt"))
    file = folder / WEIGHTS if (folder / WEIGHTS).is_file() or len(others) != 1 else others[0]
    return read_pickle(file)


def _shape(settings: Settings, transcodes: bool) -> Shape:
    normalise = settings.one_of("normalize_activations", _NORMALISE, "layer_norm")  # as ViT-Prisma takes it
    skip = transcodes and bool(settings.values.get("transcoder_with_skip_connection", False))
    if transcodes and normalise != "none":
        raise FormatError(
            f"{settings.file}: this transcoder gives its output the scale of its input "
            f"(normalize_activations: {normalise}), which none here does"
        )
    return Shape(
        d_model=settings.size("d_in"),
        n_latents=settings.size("d_sae"),
        d_target=settings.size("d_out") if transcodes else None,
        skip=skip,
        subtract_b_dec=not transcodes,
        normalise=normalise,
        unit_norm=False,
    )


def _settings(settings: Settings, name: str) -> dict[str, Any]:
    if name != "topk":
        return known_coefficient(name, settings)
    kwargs = settings.values.get("activation_fn_kwargs") or {}
    if set(kwargs) - {"k"}:
        raise FormatError(f"{settings.file}: activation_fn_kwargs has more than k: {', '.join(kwargs)}")
    return {"k": kwargs.get("k", 1)}  # as ViT-Prisma takes it


def _weights(tensors: Tensors, shape: Shape, name: str) -> dict[str, Tensor]:
    """Our tensors, from theirs."""
    weights = core(tensors, shape, architecture(name).biases)
    if name == "gated":
        tensors.leave("b_enc")  # made for every dictionary, and not used by these
    if shape.kind == "autoencoder":
        weights["b_dec"] = tensors.take("b_dec", shape.d_out)
    else:
        # (x − b) W + c = x W + (c − b W)
        off_input = tensors.take("b_dec", shape.d_in).double() @ weights["W_enc"].double()
        weights["b_enc"] = (weights["b_enc"].double() - off_input).float()
        weights["b_dec"] = tensors.take("b_dec_out", shape.d_out)
    if shape.skip:
        weights["W_skip"] = tensors.take("W_skip", shape.d_out, shape.d_in).T
    tensors.check_none_is_left()
    return weights


def _hook(settings: Settings) -> str | None:
    """Where the dictionary reads; ``hook_point`` is derived from the others, and stored by some."""
    said = settings.values
    if said.get("hook_point_head_index") is not None:
        raise FormatError(
            f"{settings.file}: a dictionary of head {said['hook_point_head_index']} alone, no whole site"
        )
    parts = (said.get("hook_point_layer"), said.get("layer_subtype"))
    return said.get("hook_point") or (None if None in parts else "blocks.{}.{}".format(*parts))


def _target(settings: Settings) -> str:
    return "blocks.{}.{}".format(
        settings.values.get("out_hook_point_layer"), settings.values.get("layer_out_subtype", "hook_mlp_out")
    )


def _tokens(settings: Settings) -> str:
    if settings.values.get("cls_token_only"):
        return "cls"
    return "patch" if settings.values.get("use_patches_only") else "all"


# --- the way out


def write(published: Published, folder: Path) -> None:
    """Write a dictionary as ViT-Prisma reads it, norm factors folded into the weights.

    Raises:
        FormatError: for what ViT-Prisma has no class for.
    """
    config, weights = _config(published), _their_weights(published)
    torch.save(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def _config(published: Published) -> dict[str, Any]:
    """Settings by the names of its ``VisionModelSAERunnerConfig``, and no others: it refuses those."""
    autoencoder, shape = published.autoencoder, published.autoencoder.shape
    _check_it_can_be_written(published)
    return {
        "architecture": "gated" if autoencoder.architecture == "gated" else "standard",
        "activation_fn_str": "topk" if autoencoder.architecture == "topk" else "relu",
        "activation_fn_kwargs": {"k": autoencoder.k} if autoencoder.architecture == "topk" else {},
        **_coefficient(published),
        "d_in": shape.d_in,
        "expansion_factor": shape.n_latents // shape.d_in,
        "d_sae": shape.n_latents,
        "normalize_activations": {"layer_norm": "layer_norm", "token_norm": "constant_norm_rescale"}.get(
            shape.normalise, "none"
        ),
        "cls_token_only": published.place.get("tokens") == "cls",
        "use_patches_only": published.place.get("tokens") == "patch",
        **({"model_name": published.facts["model_name"]} if "model_name" in published.facts else {}),
        **_their_place(published),
        "use_ghost_grads": False,
        "device": "cpu",
        "dtype": {"__type__": "torch.dtype", "value": "torch.float32"},
    }


def _coefficient(published: Published) -> dict[str, Any]:
    known = "l1_coefficient" in published.autoencoder.settings and "sparsity_setting" not in published.facts
    return {"l1_coefficient": published.autoencoder.l1_coefficient} if known else {}


def _their_place(published: Published) -> dict[str, Any]:
    shape = published.autoencoder.shape
    hook, target = (_in_block(name) for name in hooks_of(published.place))
    found = {} if hook is None else {"hook_point_layer": hook[0], "layer_subtype": hook[1]}
    if shape.kind != "transcoder":
        return found
    out = {} if target is None else {"out_hook_point_layer": target[0], "layer_out_subtype": target[1]}
    skip = {"transcoder_with_skip_connection": shape.skip}
    return {**found, "is_transcoder": True, **skip, **out, "d_out": shape.d_out}


def _in_block(name: str | None) -> tuple[int, str] | None:
    if name is None:
        return None
    blocks, _, rest = name.partition(".")
    if blocks != "blocks":
        raise FormatError(f"ViT-Prisma has dictionaries of sites in blocks alone, not of {name}")
    layer, _, subtype = rest.partition(".")
    return int(layer), subtype


def _check_it_can_be_written(published: Published) -> None:
    """Refuse what its classes cannot compute.

    Raises:
        FormatError: saying which part.
    """
    autoencoder, shape = published.autoencoder, published.autoencoder.shape
    tokens = published.place.get("tokens", "all")
    transcodes = shape.kind == "transcoder"
    problems = {
        f"no {autoencoder.architecture} dictionaries": autoencoder.architecture
        not in ("relu", "gated", "topk"),
        "no crosscoders": shape.kind == "crosscoder",
        "no gated transcoders": transcodes and autoencoder.architecture == "gated",
        f"no transcoders with normalise = {shape.normalise}": transcodes
        and shape.normalise in ("layer_norm", "token_norm"),
        "skips of as many outputs as inputs alone": shape.skip and shape.d_in != shape.d_out,
        f"no dictionaries of {tokens} tokens": tokens not in ("all", "cls", "patch"),
        f"widths that are a multiple of d_in = {shape.d_in} alone, not {shape.n_latents}": shape.n_latents
        % shape.d_in
        != 0,
    }
    found = [problem for problem, is_there in problems.items() if is_there]
    if found:
        raise FormatError(f"ViT-Prisma has {'; '.join(found)}: write it as sae_lens")


def _their_weights(published: Published) -> dict[str, Tensor]:
    autoencoder, weights = published.autoencoder, folded(published.autoencoder)
    if autoencoder.shape.kind == "transcoder":
        weights["b_dec_out"] = weights["b_dec"]
        weights["b_dec"] = torch.zeros(autoencoder.shape.d_in)
    elif not autoencoder.subtracts_b_dec:
        # x W + c = (x − b) W + (c + b W)
        off_input = (weights["b_dec"].double() @ weights["W_enc"].double()).float()
        for name in {"b_enc", "b_gate"} & weights.keys():
            weights[name] = weights[name] + off_input
        if "b_mag" in weights:
            weights["b_mag"] = weights["b_mag"] + off_input * weights["r_mag"].exp()
    if "W_skip" in weights:
        weights["W_skip"] = weights["W_skip"].T.contiguous()
    if autoencoder.architecture == "gated":
        weights["b_enc"] = torch.zeros(autoencoder.shape.n_latents)
    return weights
