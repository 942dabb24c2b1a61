"""One table a family: where a model keeps its blocks, norms, projections, MLP, final norm and head.

Nothing is re-implemented and no weight is converted: hooks on the modules named here, and one attention
function (``attention.py``), reach every site. To add a family, add its table under its ``model_type``.

Paths are dotted. ``a|b`` is the first of the two that the model has. Those of a block start at the block,
``blocks`` and ``embed`` at the bare model, those of ``ln_final`` and ``head`` at the bare model or above it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn


@dataclass(frozen=True)
class BlockTable:
    """Where a pre-norm block keeps its parts.

    Attributes:
        ln1, ln2: the norms in front of attention and MLP.
        attention: the module that calls the attention function.
        q, k, v, o: its projections.
        attn_write: the module whose output, times ``attn_scale``, is added to the residual stream.
        mlp_in, mlp_out: the first and the last matrix of the MLP.
        mlp_gate: the matrix beside ``mlp_in`` in a gated MLP, act(x W_gate) · (x W_in); ``mlp_pre`` is what
            the activation function is given: the gate's output there, as in TransformerLens.
        mlp_write: the module whose output, times ``mlp_scale``, is added to the residual stream.
        attn_scale, mlp_scale: LayerScale where it is a parameter of the block and no module.
        qkv: the one projection of a model that computes q, k and v together; q, k and v are then left out.
    """

    ln1: str
    attention: str
    o: str
    attn_write: str
    ln2: str
    mlp_in: str
    mlp_out: str
    mlp_write: str
    q: str = ""
    k: str = ""
    v: str = ""
    attn_scale: str = ""
    mlp_scale: str = ""
    qkv: str = ""
    mlp_gate: str = ""


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts, and what its sequence of tokens is.

    Attributes:
        blocks: the list of blocks.
        embed: the module that leaves the embedded patches.
        block: the parts of a block.
        pre_norm: the norm between the embedding with its positions and the first block.
        ln_final: the final norm, and what it is applied to: ``all`` tokens, the ``cls`` token alone, or one
            ``pooled`` token, the mean of the patches. The first that is there and is a norm.
        head: the matrix that makes logits of features.
        trunk: where a model with a head keeps the bare model.
        prefix: kinds of the tokens that come before the patches, given the configuration.
        frames: frames of a clip and of a tubelet, given the configuration; None for a model of stills.
        frames_first: whether patches come frame by frame (else all frames of a patch come together).
        missing: sites that the architecture does not have, with the reason.
        inputs: further arguments of the forward pass.
        n_heads, d_model, image_size, patch_size, n_channels: where the configuration has these; a model
            without configuration stands for it.
        any_size: whether it takes images of any size as they come, given the configuration.
        head_skips_norm: whether a classifier reads the residual stream without the final norm.
        blocks_return_tuples: whether a block returns the stream alone or before others.
        unfit: what of a model is not built as the table says, where a family has variants; else None.
    """

    blocks: str
    embed: str
    block: BlockTable
    ln_final: Mapping[str, str]
    pre_norm: str = ""
    head: str = "classifier"
    trunk: str = ""
    prefix: Callable[[Any], tuple[str, ...]] = lambda _: ("cls",)
    frames: Callable[[Any], tuple[int, int]] | None = None
    frames_first: bool = True
    missing: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    n_heads: str = "num_attention_heads"
    d_model: str = "hidden_size"
    image_size: str = "image_size"
    patch_size: str = "patch_size"
    n_channels: str = "num_channels"
    any_size: Callable[[Any], bool] = lambda _: False
    head_skips_norm: bool = False
    blocks_return_tuples: bool = False
    unfit: Callable[[Any], str | None] = lambda _: None


_PROJECTIONS = {name: f"attention.{name}_proj" for name in "qkvo"}

#: The block of ViT and of those that transformers derives from it.
_VIT = BlockTable(
    ln1="layernorm_before",
    attention="attention",
    attn_write="attention",
    ln2="layernorm_after",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
    mlp_write="mlp",
    **_PROJECTIONS,
)
_CLIP = BlockTable(
    ln1="layer_norm1",
    attention="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.out_proj",
    attn_write="self_attn",
    ln2="layer_norm2",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
    mlp_write="mlp",
)
_DINO = BlockTable(
    ln1="norm1",
    attention="attention",
    attn_write="layer_scale1",
    ln2="norm2",
    mlp_gate="mlp.gate_proj",
    mlp_in="mlp.fc1|mlp.up_proj",
    mlp_out="mlp.fc2|mlp.down_proj",
    mlp_write="layer_scale2",
    **_PROJECTIONS,
)
_VIDEOMAE = BlockTable(
    ln1="layernorm_before",
    attention="attention.attention",
    q="attention.attention.query",
    k="attention.attention.key",
    v="attention.attention.value",
    o="attention.output.dense",
    attn_write="attention",
    ln2="layernorm_after",
    mlp_in="intermediate.dense",
    mlp_out="output.dense",
    mlp_write="output.dense",
)
_VJEPA2 = BlockTable(
    ln1="norm1",
    attention="attention",
    q="attention.query",
    k="attention.key",
    v="attention.value",
    o="attention.proj",
    attn_write="attention",
    ln2="norm2",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
    mlp_write="mlp",
)


def _registers(config: Any) -> tuple[str, ...]:
    return ("cls", *["register"] * config.num_register_tokens)


def _nothing(_config: Any) -> tuple[str, ...]:
    return ()


#: Why TimeSformer has no sites inside attention.
_DIVIDED = (
    "TimeSformer attends twice in a block, over time and over space, outside of transformers' attention "
    "interface: its attention is no one matrix over all tokens"
)


def _timm_unfit(model: Any) -> str | None:
    """What sets a ``VisionTransformer`` of timm apart from the plain one, whose table there is."""
    block = find(model, "blocks.0")
    if type(block).__name__ != "Block" or type(block.attn).__name__ != "Attention":
        return f"its block is {type(block).__name__} and not timm's Block with timm's Attention"
    if block.attn.gate is not None or not isinstance(block.attn.norm, nn.Identity):
        return "its attention scales what its heads return before the output projection"
    if block.mlp.fc1.out_features != block.mlp.fc2.in_features:
        return "its MLP keeps gate and input in one matrix"
    if not isinstance(model.patch_embed.norm, nn.Identity):
        return "it normalises its patches before it adds their positions"
    if not isinstance(model.fc_norm, nn.Identity) and (model.global_pool, model.pool_include_prefix) != (
        "avg",
        False,
    ):
        return (
            f"its last norm is of tokens pooled as {model.global_pool!r} and not of the mean of the patches"
        )
    return None


_vit = Family(
    blocks="layers",
    embed="embeddings.patch_embeddings",
    block=_VIT,
    ln_final={"layernorm": "all"},
    trunk="vit",
)
_clip = Family(
    blocks="encoder.layers",
    embed="embeddings.patch_embedding",
    block=_CLIP,
    pre_norm="pre_layrnorm",
    ln_final={"post_layernorm": "cls"},
    trunk="vision_model",
    head_skips_norm=True,
)
_dinov2 = Family(
    blocks="encoder.layer",
    embed="embeddings.patch_embeddings",
    block=_DINO,
    ln_final={"layernorm": "all"},
    trunk="dinov2",
    any_size=lambda _: True,
)

FAMILIES: Mapping[str, Family] = {
    "toy_vit": Family(
        blocks="blocks",
        embed="embeddings.patch",
        block=replace(_VIT, ln1="ln1", ln2="ln2", mlp_in="mlp.fc1", mlp_out="mlp.fc2"),
        ln_final={"ln_final": "all"},
        head="head",
        prefix=lambda config: (*["cls"] * (config.pooling == "cls"), *["register"] * config.n_registers),
        frames=lambda config: (config.n_frames, config.tubelet_size),
        n_heads="n_heads",
        d_model="d_model",
        n_channels="n_channels",
    ),
    "vit": _vit,
    "deit": replace(_vit, trunk="deit", prefix=lambda _: ("cls", "distillation")),
    "vit_msn": _vit,
    "ijepa": replace(_vit, trunk="ijepa", prefix=_nothing),
    "beit": replace(
        _vit,
        trunk="beit",
        block=replace(_VIT, attn_scale="lambda_1", mlp_scale="lambda_2"),
        ln_final={"layernorm": "all", "pooler.layernorm": "pooled"},
    ),
    "clip_vision_model": _clip,
    "siglip_vision_model": replace(
        _clip, pre_norm="", ln_final={"post_layernorm": "all"}, prefix=_nothing, head_skips_norm=False
    ),
    "dinov2": _dinov2,
    "dinov2_with_registers": replace(_dinov2, trunk="dinov2_with_registers", prefix=_registers),
    "dinov3_vit": replace(
        _dinov2,
        blocks="model.layer",
        embed="embeddings.patch_embeddings",
        ln_final={"norm": "all"},
        trunk="dinov3_vit",
        prefix=_registers,
    ),
    "videomae": Family(
        blocks="encoder.layer",
        embed="embeddings.patch_embeddings",
        block=_VIDEOMAE,
        ln_final={"layernorm": "all", "fc_norm": "pooled"},
        trunk="videomae",
        prefix=_nothing,
        frames=lambda config: (config.num_frames, config.tubelet_size),
    ),
    "vivit": replace(
        _vit,
        trunk="vivit",
        frames=lambda config: (config.num_frames, config.tubelet_size[0]),
        patch_size="tubelet_size",
    ),
    "vjepa2": Family(
        blocks="encoder.layer",
        embed="encoder.embeddings.patch_embeddings",
        block=_VJEPA2,
        ln_final={"encoder.layernorm": "all"},
        trunk="vjepa2",
        prefix=_nothing,
        frames=lambda config: (config.frames_per_clip, config.tubelet_size),
        inputs={"skip_predictor": True},
        image_size="crop_size",
        blocks_return_tuples=True,
        n_channels="in_chans",
    ),
    "timesformer": Family(
        blocks="encoder.layer",
        embed="embeddings.patch_embeddings",
        block=BlockTable(
            ln1="",
            attention="",
            o="",
            attn_write="",
            ln2="layernorm_after",
            mlp_in="intermediate.dense",
            mlp_out="output.dense",
            mlp_write="output",
        ),
        ln_final={"layernorm": "all"},
        trunk="timesformer",
        frames=lambda config: (config.num_frames, 1),
        frames_first=False,
        blocks_return_tuples=True,
        missing=dict.fromkeys(
            ("ln1_out", "q", "k", "v", "z", "attn_scores", "pattern", "result", "attn_out"), _DIVIDED
        ),
    ),
    "timm_vit": Family(
        blocks="blocks",
        embed="patch_embed.proj",
        block=BlockTable(
            ln1="norm1",
            attention="attn",
            qkv="attn.qkv",
            o="attn.proj",
            attn_write="ls1",
            ln2="norm2",
            mlp_in="mlp.fc1",
            mlp_out="mlp.fc2",
            mlp_write="ls2",
        ),
        pre_norm="norm_pre",
        ln_final={"norm": "all", "fc_norm": "pooled"},
        head="head",
        prefix=lambda model: (*["cls"] * model.has_class_token, *["register"] * model.num_reg_tokens),
        n_heads="blocks.0.attn.num_heads",
        d_model="embed_dim",
        image_size="patch_embed.img_size",
        patch_size="patch_embed.patch_size",
        n_channels="in_chans",
        any_size=lambda model: model.dynamic_img_size,
        unfit=_timm_unfit,
    ),
}

#: Tables of models whose own name is another: classifiers of CLIP and SigLIP, which carry the configuration
#: of text and image together, and models without a configuration, which go by their class.
_ALIASES = {
    "siglip": "siglip_vision_model",
    "clip": "clip_vision_model",
    "VisionTransformer": "timm_vit",
}


class UnknownFamily(ValueError):
    """A model without a table, or one that is not built as its table says."""


def kind_of(model: nn.Module) -> str:
    """The name in ``FAMILIES`` that a model goes by: that of its configuration, else of its class."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return _ALIASES.get(kind, kind)


def family_of(model: nn.Module) -> Family:
    """The table of a model.

    Raises:
        UnknownFamily: naming the tables that there are, and how to add one.
    """
    kind = kind_of(model)
    if kind not in FAMILIES:
        raise UnknownFamily(
            f"no table for {type(model).__name__} (model_type {kind!r}). Known: {', '.join(FAMILIES)}. To "
            f"add it, say in prisma_steps/models/families.py, under FAMILIES[{kind!r}], where its blocks, "
            "norms, projections, MLP, final norm and head are"
        )
    unfit = FAMILIES[kind].unfit(model)
    if unfit is not None:
        raise UnknownFamily(f"{type(model).__name__} is not built as the table of {kind!r} says: {unfit}")
    return FAMILIES[kind]


def find(root: Any, path: str) -> Any:
    """What lies at ``path`` below ``root``, None where nothing does; ``a|b`` is the first that is there."""
    for option in path.split("|"):
        found: Any = root
        for name in option.split("."):
            found = getattr(found, name, None)
        if option and found is not None:
            return found
    return None


def sides(size: Any) -> tuple[int, int]:
    """Rows and columns of a size as configurations write it: one number, two, or three with frames first."""
    return (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))


def patches_of(config: Any, family: Family, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Frames, rows and columns of the patch grid of an input [(frame,) channel, row, column]."""
    rows, columns = (
        side // patch for side, patch in zip(shape[-2:], sides(find(config, family.patch_size)), strict=True)
    )
    tubelet = family.frames(config)[1] if family.frames is not None else 1
    frames = shape[0] if len(shape) == 4 else 1
    return frames // tubelet, rows, columns
