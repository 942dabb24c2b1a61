"""Where a model's activations can be read and written: names of sites and weights, and their dims."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: What is read at each site, in the order of a forward pass.
SITES: Mapping[str, str] = {
    "embed": "patch embedding",
    "full_embed": "embedding with CLS and positions",
    "resid_pre": "residual stream before the block",
    "resid_mid": "residual stream between attention and MLP",
    "resid_post": "residual stream after the block",
    "ln1_out": "normalised input of attention",
    "ln2_out": "normalised input of the MLP",
    "q": "query",
    "k": "key",
    "v": "value",
    "z": "attention-weighted value",
    "attn_scores": "attention score before softmax",
    "pattern": "attention pattern",
    "result": "write of one head to the residual stream",
    "attn_out": "attention output added to the residual stream",
    "mlp_out": "MLP output added to the residual stream",
    "mlp_pre": "MLP pre-activation",
    "mlp_post": "MLP activation",
    "ln_final": "output of the final norm",
    "logits": "logit",
}

_TOKENS = ("image", "token")
_RESIDUAL = (*_TOKENS, "d_model")

#: Sites that can be read and written, with their dims in one layer, in the order of a forward pass.
SITE_DIMS: Mapping[str, tuple[str, ...]] = {
    "embed": _RESIDUAL,
    "full_embed": _RESIDUAL,
    "resid_pre": _RESIDUAL,
    "ln1_out": _RESIDUAL,
    **{name: (*_TOKENS, "head", "d_head") for name in ("q", "k", "v")},
    **{name: ("image", "head", "query_token", "key_token") for name in ("attn_scores", "pattern")},
    "z": (*_TOKENS, "head", "d_head"),
    "result": (*_TOKENS, "head", "d_model"),
    "attn_out": _RESIDUAL,
    "resid_mid": _RESIDUAL,
    "ln2_out": _RESIDUAL,
    "mlp_pre": (*_TOKENS, "d_mlp"),
    "mlp_post": (*_TOKENS, "d_mlp"),
    "mlp_out": _RESIDUAL,
    "resid_post": _RESIDUAL,
    "ln_final": _RESIDUAL,
    "logits": ("image", "class"),
}

#: Weights of a model, to multiply from the right (x @ W), with their dims in one layer; W_U, b_U exist once.
WEIGHT_DIMS: Mapping[str, tuple[str, ...]] = {
    **{f"W_{name}": ("head", "d_model", "d_head") for name in "QKV"},
    **{f"b_{name}": ("head", "d_head") for name in "QKV"},
    "W_O": ("head", "d_head", "d_model"),
    "b_O": ("d_model",),
    "W_gate": ("d_model", "d_mlp"),
    "b_gate": ("d_mlp",),
    "W_in": ("d_model", "d_mlp"),
    "b_in": ("d_mlp",),
    "W_out": ("d_mlp", "d_model"),
    "b_out": ("d_model",),
    "W_U": ("d_model", "class"),
    "b_U": ("class",),
}

#: Short names of sites by their names in TransformerLens and ViT-Prisma, without ``blocks.<layer>.``
TRANSFORMER_LENS_SITES: Mapping[str, str] = {
    "hook_embed": "embed",
    "hook_full_embed": "full_embed",
    "hook_ln_pre": "full_embed",
    **{f"hook_{site}": site for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")},
    "ln1.hook_normalized": "ln1_out",
    "ln2.hook_normalized": "ln2_out",
    **{f"attn.hook_{site}": site for site in ("q", "k", "v", "z", "attn_scores", "pattern", "result")},
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_post": "mlp_post",
    "ln_final.hook_normalized": "ln_final",
}


_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def site_key(name: str) -> tuple[str, int | None]:
    """The site and layer of a name as TransformerLens has it (``blocks.3.attn.hook_q``), or of a short one.

    The layer is None where the name has none.
    """
    layered = _IN_BLOCK.fullmatch(name)
    layer, inner = (int(layered[1]), layered[2]) if layered else (None, name)
    return TRANSFORMER_LENS_SITES.get(inner, inner if layer is None else name), layer


#: Attributes that say where in a model a dictionary belongs.
PLACE = ("site", "layer", "target_site")

#: Sites that exist once and not once a layer.
SITES_WITHOUT_LAYER = ("embed", "full_embed", "ln_final", "logits")
