"""A tiny model of every family, with random weights: what the tests of hooks run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf

from prisma_steps.models.families import kind_of
from prisma_steps.models.heads import Features, LinearProbe, ZeroShotHead
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from tests.without_torchvision import imported_timm

_SIZES: dict[str, Any] = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
_MLP: dict[str, Any] = {"intermediate_size": 20}
_RATIO: dict[str, Any] = {"mlp_ratio": 2}
_IMAGE: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_channels": 2}
_STILL: dict[str, Any] = {**_SIZES, **_MLP, **_IMAGE, "num_labels": 5}
_DINO: dict[str, Any] = {**_SIZES, **_RATIO, **_IMAGE, "num_labels": 5}
_CLIP: dict[str, Any] = {**_SIZES, **_MLP, **_IMAGE}
TOY: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 12,
    "n_heads": 3,
    "d_mlp": 20,
    "patch_size": 4,
    "image_size": 8,
    "n_channels": 2,
    "n_classes": 5,
}
_TIMM: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 2,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 2,
    "num_classes": 5,
}
_VJEPA: dict[str, Any] = {
    "hidden_size": 24,  # rotary positions need six coordinates a head and more
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "crop_size": 8,
    "patch_size": 4,
    "in_chans": 2,
    "frames_per_clip": 4,
    "num_labels": 5,
    "num_pooler_layers": 1,
    "pred_hidden_size": 12,
    "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 2,
    **_RATIO,
}


def _toy(**changes: Any) -> Callable[[], Any]:
    return lambda: ToyViT(ToyViTConfig(**{**TOY, **changes}))


def _timm(**changes: Any) -> Callable[[], Any]:
    def made() -> Any:
        kind = imported_timm().models.vision_transformer.VisionTransformer
        return kind(**{**_TIMM, **changes})

    return made


MAKERS: Mapping[str, Callable[[], Any]] = {
    "toy": _toy(),
    "toy attention-only": _toy(attention_only=True),
    "toy without LayerNorm": _toy(layer_norm=False),
    "toy bare": _toy(attention_only=True, layer_norm=False),
    "toy mean, registers": _toy(pooling="mean", n_registers=2),
    "toy video": _toy(n_frames=4, tubelet_size=2),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**_STILL)),
    "vit bare": lambda: hf.ViTModel(hf.ViTConfig(**_STILL)),
    "deit": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**_STILL)),
    "deit bare": lambda: hf.DeiTModel(hf.DeiTConfig(**_STILL)),
    "vit_msn": lambda: hf.ViTMSNForImageClassification(hf.ViTMSNConfig(**_STILL)),
    "vit_msn bare": lambda: hf.ViTMSNModel(hf.ViTMSNConfig(**_STILL)),
    "ijepa": lambda: hf.IJepaForImageClassification(hf.IJepaConfig(**_STILL)),
    "ijepa bare": lambda: hf.IJepaModel(hf.IJepaConfig(**_STILL)),
    "beit": lambda: hf.BeitForImageClassification(hf.BeitConfig(**_STILL, use_relative_position_bias=True)),
    "beit shared bias": lambda: hf.BeitModel(
        hf.BeitConfig(**_STILL, use_shared_relative_position_bias=True, use_mean_pooling=False)
    ),
    "beit no scale": lambda: hf.BeitForImageClassification(
        hf.BeitConfig(**_STILL, layer_scale_init_value=0.0, use_absolute_position_embeddings=True)
    ),
    "clip": lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**_CLIP, projection_dim=7)),
    "clip bare": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**_CLIP)),
    "clip classifier": lambda: hf.CLIPForImageClassification(
        hf.CLIPConfig(vision_config=_CLIP, text_config={**_SIZES, **_MLP}, num_labels=5)
    ),
    "siglip": lambda: hf.SiglipForImageClassification(
        hf.SiglipConfig(vision_config=_CLIP, text_config={**_SIZES, **_MLP}, num_labels=5)
    ),
    "siglip bare": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**_CLIP)),
    "dinov2": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**_DINO)),
    "dinov2 bare, SwiGLU": lambda: hf.Dinov2Model(hf.Dinov2Config(**_DINO, use_swiglu_ffn=True)),
    "dinov2_with_registers": lambda: hf.Dinov2WithRegistersForImageClassification(
        hf.Dinov2WithRegistersConfig(**_DINO, num_register_tokens=3)
    ),
    "dinov2_with_registers bare": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**_DINO, num_register_tokens=3)
    ),
    "dinov3_vit": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**_CLIP, num_register_tokens=3)),
    "dinov3_vit gated": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**_CLIP, use_gated_mlp=True)),
    "videomae": lambda: hf.VideoMAEForVideoClassification(hf.VideoMAEConfig(**_STILL, num_frames=4)),
    "videomae bare": lambda: hf.VideoMAEModel(
        hf.VideoMAEConfig(**_STILL, num_frames=4, use_mean_pooling=False)
    ),
    "vivit": lambda: hf.VivitForVideoClassification(
        hf.VivitConfig(
            **_SIZES, **_MLP, image_size=8, num_channels=2, num_frames=4, tubelet_size=[2, 4, 4], num_labels=5
        )
    ),
    "vjepa2": lambda: hf.VJEPA2ForVideoClassification(hf.VJEPA2Config(**_VJEPA)),
    "vjepa2 bare": lambda: hf.VJEPA2Model(hf.VJEPA2Config(**_VJEPA)),
    "timesformer": lambda: hf.TimesformerForVideoClassification(hf.TimesformerConfig(**_STILL, num_frames=4)),
    "timesformer joint": lambda: hf.TimesformerModel(
        hf.TimesformerConfig(**_STILL, num_frames=4, attention_type="joint_space_time")
    ),
    "timm": _timm(),
    "timm bare, registers, LayerScale": _timm(num_classes=0, reg_tokens=2, init_values=0.5, pre_norm=True),
    "timm mean of patches, QK-norm": _timm(global_pool="avg", qk_norm=True, qkv_bias=False),
    "timm any size, no CLS": _timm(
        dynamic_img_size=True, class_token=False, global_pool="avg", fc_norm=False
    ),
}

#: Those with a head, or to which one can be put: a bare model of timm returns a tensor, which no head reads.
CLASSIFIERS = [name for name in MAKERS if name != "timm bare, registers, LayerScale"]


def make(name: str, dtype: torch.dtype = torch.float32) -> HookedViT:
    """A model in evaluation mode; no weight is zero, which would hide one that is left out."""
    torch.manual_seed(0)
    model = MAKERS[name]()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return HookedViT(model.to(dtype).eval())


def frozen(name: str, dtype: torch.dtype = torch.float64) -> HookedViT:
    """As ``make``, without gradients of the weights."""
    model = make(name, dtype)
    model.model.requires_grad_(False)
    return model


def make_classifier(name: str, dtype: torch.dtype = torch.float32) -> HookedViT:
    """As ``make``, without gradients; what has no head gets one, with 5 classes."""
    vit = frozen(name, dtype)
    if vit.unembedding is None:
        vit = HookedViT(vit.model, _head_for(name, vit).to(dtype))
    return vit


def _head_for(name: str, vit: HookedViT) -> torch.nn.Module:
    draw = torch.Generator().manual_seed(3)
    if name in ("clip", "siglip bare"):
        return ZeroShotHead(torch.randn(5, 7 if name == "clip" else 12, generator=draw), 20.0, -3.0)
    kinds = vit.token_coords()["token_kind"]
    reads: Features = "cls_mean_patch" if "cls" in kinds else "mean_patch"
    width = vit.d_model * (2 if "cls" in kinds else 1)
    weight, bias = torch.randn(5, width, generator=draw), torch.randn(5, generator=draw)
    return LinearProbe(weight, bias, reads, int((kinds != "patch").sum()))


def pixels_for(model: HookedViT, n_images: int = 2, seed: int = 2) -> torch.Tensor:
    """Inputs of the shape that a model asks for."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n_images, *model.input_shape), generator=generator, dtype=torch.float64).to(
        model.dtype
    )


def use_attention(model: HookedViT, implementation: str) -> None:
    """Have a model compute its attention by the fused function (``sdpa``) or step by step (``eager``)."""
    if kind_of(model.model) != "timm_vit":
        model.model.set_attn_implementation(implementation)
        return
    for block in model.model.blocks:
        block.attn.fused_attn = implementation == "sdpa"
