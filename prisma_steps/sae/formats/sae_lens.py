"""SAELens: ``cfg.json`` and ``sae_weights.safetensors`` (https://github.com/decoderesearch/SAELens).

W_enc is [d_in, d_sae] and W_dec [d_sae, d_out], as here; W_skip is the other way round. BatchTopK and
Matryoshka dictionaries are written as JumpReLU with one threshold, as SAELens does it. The layout is that of
its version 6; files of older versions are read, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Shape
from prisma_steps.sae.formats.building import (
    build,
    core,
    known_coefficient,
    log_of_threshold,
    one_threshold,
    sparsity_fact,
    with_normed_rows,
)
from prisma_steps.sae.formats.files import FormatError, Settings, Tensors, read_safetensors, read_settings
from prisma_steps.sae.formats.published import Published, folded, hooks_of, place_of

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"

#: Beside a dictionary in training: the factor of its inputs, which is folded only at the end.
SCALER = "activation_scaler.json"

#: Our architecture for each of theirs.
_OURS: Mapping[str, str] = {
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "batchtopk": "batch_topk",
    "matryoshka_batchtopk": "matryoshka",
    "jumprelu": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}

_NORMALISE: Mapping[str, Any] = {
    "none": "none",
    "expected_average_only_in": "expected_norm",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "token_norm",
}

#: Our architectures that have one threshold for all latents, and are JumpReLU to SAELens.
_ONE_THRESHOLD = ("batch_topk", "matryoshka")

#: The version whose layout is written; SAELens takes a file without one for an old layout.
_VERSION = "6.0.0"

#: Where settings are kept that SAELens has no place for, inside what it calls metadata.
_OWN = "prisma_steps"


def read(folder: Path) -> Published:
    """The dictionary in a folder, converted to float32.

    Raises:
        FormatError: naming the file and what is wrong in it, or what cannot be represented here.
    """
    settings = read_settings(folder / CONFIG)
    theirs, metadata = _their_architecture(settings), _metadata(settings)
    name = settings.one_of("architecture", _OURS, "standard") if theirs != "topk" else "topk"
    own = metadata.get(_OWN) or {}
    exported = name == "jumprelu" and own.get("architecture") in _ONE_THRESHOLD
    name = own["architecture"] if exported else name
    kept = dict(own.get("settings", {})) if own.get("architecture") == name else {}
    shape = _shape(settings, theirs, bool(own.get("unit_norm", False)))
    given = kept if exported else {**kept, **_settings(settings, name, shape)}
    weights = _weights(read_safetensors(folder / WEIGHTS), settings, name, shape)
    if shape.normalise == "expected_norm":
        weights["normalisation.norm_factor"] = _scaling_factor(folder)
    place = place_of(metadata.get("hook_name"), metadata.get("hook_name_out"), own.get("tokens"))
    model = {"model_name": metadata["model_name"]} if metadata.get("model_name") else {}
    return Published(build(name, shape, given, weights), place, {**model, **sparsity_fact(name, given)})


def _metadata(settings: Settings) -> Mapping[str, Any]:
    """What the dictionary is of: apart in version 6, among the settings and by other names before."""
    found = settings.values.get("metadata")
    if not isinstance(found, dict):
        older = settings.values
        found = {**older, "hook_name": older.get("hook_name", older.get("hook_point"))}
    index = found.get("hook_head_index", found.get("hook_point_head_index"))
    if index is not None:
        raise FormatError(f"{settings.file}: a dictionary of head {index} alone, which is no whole site")
    return found


def _their_architecture(settings: Settings) -> str:
    """Their name of the architecture; a TopK dictionary of older versions is a standard one with a function.

    Raises:
        FormatError: for one that is not known, and for what would change its latents.
    """
    function = settings.values.get("activation_fn", settings.values.get("activation_fn_str")) or "relu"
    if function not in ("relu", "topk"):
        raise FormatError(
            f"{settings.file}: activation_fn is {function!r}, which no architecture here has: known are relu "
            "and topk"
        )
    settings.must_be("finetuning_scaling_factor", False, "latents are scaled after training, unlike any here")
    settings.must_be("use_quadratic_activation", False, "no architecture here squares its latents")
    settings.one_of("architecture", _OURS, "standard")
    return "topk" if function == "topk" else settings.values.get("architecture", "standard")


def _shape(settings: Settings, theirs: str, unit_norm: bool) -> Shape:
    transcodes = "transcoder" in theirs
    if transcodes:
        settings.must_be("apply_b_dec_to_input", False, "b_dec of a transcoder belongs to another site")
    shape = Shape(
        d_model=settings.size("d_in"),
        n_latents=settings.size("d_sae"),
        d_target=settings.size("d_out") if transcodes else None,
        skip="skip" in theirs,
        subtract_b_dec=not transcodes and bool(settings.values.get("apply_b_dec_to_input", True)),
        normalise=_normalise(settings),
        unit_norm=unit_norm,
    )
    if shape.skip and shape.normalise != "none":
        raise FormatError(
            f"{settings.file}: the skip of this transcoder is of inputs that are not normalised"
        )
    return shape


def _normalise(settings: Settings) -> Any:
    """Our way of normalising; a yes or no in older versions."""
    found = settings.values.get("normalize_activations")
    if found is None or isinstance(found, bool):
        return "expected_norm" if found else "none"
    return settings.one_of("normalize_activations", _NORMALISE, "none")


def _settings(settings: Settings, name: str, shape: Shape) -> dict[str, Any]:
    """Arguments of our architecture, from theirs."""
    if name not in ("topk", *_ONE_THRESHOLD):
        return known_coefficient(name, settings)
    older = settings.values.get("activation_fn_kwargs") or {}
    k = settings.values.get("k", older.get("k"))
    if not isinstance(k, int | float) or k != int(k):
        raise FormatError(f"{settings.file}: k is {k!r}, expected a whole number of latents")
    widths = settings.values.get("matryoshka_widths") or [shape.n_latents]
    nested = {"prefixes": [width / shape.n_latents for width in widths]} if name == "matryoshka" else {}
    return {"k": int(k), **nested}


def _weights(tensors: Tensors, settings: Settings, name: str, shape: Shape) -> dict[str, Tensor]:
    """Our tensors, from theirs."""
    biases = tuple(bias for bias in architecture(name).biases if bias != "log_threshold")
    weights = {**core(tensors, shape, biases), "b_dec": tensors.take("b_dec", shape.d_out)}
    if shape.skip:
        weights["W_skip"] = tensors.take("W_skip", shape.d_out, shape.d_in).T
    weights |= _thresholds(tensors, name, shape.n_latents)
    scaled = "scaling_factor" in tensors  # older versions wrote it into every file
    if scaled and (tensors.take("scaling_factor", shape.n_latents) != 1).any():
        raise FormatError(f"{tensors.file}: scaling_factor is not 1: latents are scaled after training")
    tensors.check_none_is_left()
    return with_normed_rows(weights) if settings.values.get("rescale_acts_by_decoder_norm") else weights


def _thresholds(tensors: Tensors, name: str, n_latents: int) -> dict[str, Tensor]:
    """What latents must exceed, of architectures that have it."""
    if name in _ONE_THRESHOLD:
        in_training = "topk_threshold" in tensors
        found = tensors.take("topk_threshold") if in_training else tensors.take("threshold", n_latents)
        return {"threshold": found if in_training else one_threshold(found, tensors.file)}
    if name != "jumprelu":
        return {}
    if "log_threshold" in tensors:  # in training, by older versions
        return {"log_threshold": tensors.take("log_threshold", n_latents)}
    return {"log_threshold": log_of_threshold(tensors.take("threshold", n_latents))}


def _scaling_factor(folder: Path) -> Tensor:
    """The factor of the inputs, which SAELens keeps apart until training ends."""
    if not (folder / SCALER).is_file():
        raise FormatError(
            f"{CONFIG}: normalize_activations is expected_average_only_in, and the factor is not known. Fold "
            f"it with fold_activation_norm_scaling_factor of SAELens, or write it to {SCALER} beside it: "
            '{"scaling_factor": …}'
        )
    factor = read_settings(folder / SCALER).values.get("scaling_factor")
    if not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise FormatError(f"{SCALER}: scaling_factor is {factor!r}, expected a number above 0")
    return torch.tensor([float(factor)])


# --- the way out


def write(published: Published, folder: Path) -> None:
    """Write a dictionary as SAELens's classes for inference read it, norm factors folded into the weights.

    Raises:
        FormatError: for what SAELens has no class for.
    """
    config, weights = _config(published), _their_weights(published)
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config(published: Published) -> dict[str, Any]:
    autoencoder, shape = published.autoencoder, published.autoencoder.shape
    hook, target = hooks_of(published.place)
    settings = {name: getattr(autoencoder, name) for name in autoencoder.settings}
    metadata = {
        "sae_lens_version": _VERSION,
        **({"model_name": published.facts["model_name"]} if "model_name" in published.facts else {}),
        **({"hook_name": hook} if hook else {}),
        **({"hook_name_out": target} if target else {}),
        _OWN: {
            **({"tokens": published.place["tokens"]} if "tokens" in published.place else {}),
            "architecture": autoencoder.architecture,
            "unit_norm": shape.unit_norm,
            **({} if "sparsity_setting" in published.facts else {"settings": settings}),
        },
    }
    return {
        "architecture": _their_name(published),
        "d_in": shape.d_in,
        "d_sae": shape.n_latents,
        **({"d_out": shape.d_out} if shape.kind == "transcoder" else {}),
        **({"k": settings["k"], "rescale_acts_by_decoder_norm": False} if _keeps_k(published) else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": autoencoder.subtracts_b_dec,
        "normalize_activations": {"layer_norm": "layer_norm", "token_norm": "constant_norm_rescale"}.get(
            shape.normalise, "none"
        ),
        "reshape_activations": "hook_z" if published.place.get("site") == "z" else "none",
        "metadata": metadata,
    }


def _keeps_k(published: Published) -> bool:
    return published.autoencoder.architecture == "topk"


def _their_name(published: Published) -> str:
    """Their architecture for ours.

    Raises:
        FormatError: where they have none.
    """
    autoencoder, shape = published.autoencoder, published.autoencoder.shape
    name = "jumprelu" if autoencoder.architecture in _ONE_THRESHOLD else autoencoder.architecture
    if shape.kind == "autoencoder":
        return next(theirs for theirs, ours in _OURS.items() if ours == name)
    if shape.kind == "crosscoder" or name not in ("relu", "jumprelu"):
        raise FormatError(f"SAELens has no {autoencoder.architecture} {shape.kind}")
    if shape.skip and shape.normalise in ("layer_norm", "token_norm"):
        raise FormatError(
            f"SAELens's transcoders skip inputs that are not normalised, this one's are ({shape.normalise})"
        )
    words = ["jumprelu"] * (name == "jumprelu") + ["skip"] * shape.skip + ["transcoder"]
    return "_".join(words)


def _their_weights(published: Published) -> dict[str, Tensor]:
    weights = folded(published.autoencoder)
    n_latents = published.autoencoder.shape.n_latents
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    elif "threshold" in weights:
        weights["threshold"] = weights["threshold"].clamp_min(0).repeat(n_latents)
    if "W_skip" in weights:
        weights["W_skip"] = weights["W_skip"].T.contiguous()
    return weights
