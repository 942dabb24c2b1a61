"""A small pre-norm vision transformer, as a model class of ``transformers``.

The architecture of Dosovitskiy et al. 2020 (arXiv 2010.11929): patches (of a video, tubelets as in Arnab et
al. 2021, arXiv 2103.15691), a CLS token first, registers (Darcet et al. 2023, arXiv 2309.16588), learned
positions, blocks of attention and MLP, a head on CLS or on the mean of the patches; also without MLPs or
without LayerNorm, as the "mice ViTs" of Prisma (arXiv 2504.19475) are.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prisma_steps.models.attention import attention


class ToyViTConfig(PreTrainedConfig):
    """Sizes of a ``ToyViT``. Images are square; more than one frame makes it a model of clips.

    Raises:
        ValueError: when patches do not tile the image, tubelets the clip, or heads ``d_model``.
    """

    model_type = "toy_vit"

    n_layers: int = 2
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 512
    patch_size: int = 8
    image_size: int = 64
    n_channels: int = 1
    n_classes: int = 2
    attention_only: bool = False
    layer_norm: bool = True
    pooling: str = "cls"
    n_registers: int = 0
    n_frames: int = 1
    tubelet_size: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse sizes that do not divide."""
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide the image size {self.image_size}")
        if self.n_frames % self.tubelet_size:
            raise ValueError(f"tubelet_size {self.tubelet_size} does not divide the {self.n_frames} frames")
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide d_model {self.d_model}")
        if self.pooling not in ("cls", "mean"):
            raise ValueError(f"pooling is {self.pooling!r}, expected 'cls' or 'mean'")
        super().__post_init__(**kwargs)

    @property
    def n_patches(self) -> int:
        """Patches of an image, or tubelets of a clip."""
        return self.n_frames // self.tubelet_size * (self.image_size // self.patch_size) ** 2

    @property
    def n_prefix(self) -> int:
        """Tokens before the patches: CLS, where there is one, and registers."""
        return (self.pooling == "cls") + self.n_registers


class Attention(nn.Module):
    """Softmax attention of Vaswani et al. 2017 (arXiv 1706.03762), section 3.2, with biases."""

    def __init__(self, config: ToyViTConfig) -> None:
        """Make the four projections."""
        super().__init__()
        self.config = config
        self.is_causal = False
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.d_model, config.d_model) for _ in range(4)
        )

    def forward(self, x: Float[Tensor, "image token d_model"]) -> Float[Tensor, "image token d_model"]:
        """What attention adds to the residual stream, given its (normalised) input."""
        q, k, v = (
            projection(x).unflatten(-1, (self.config.n_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        name = self.config._attn_implementation or "sdpa"
        function = ALL_ATTENTION_FUNCTIONS.get_interface(name, attention)
        z, _ = function(self, q, k, v, None, scaling=q.shape[-1] ** -0.5)
        return self.o_proj(z.flatten(2))


class MLP(nn.Module):
    """Two matrices with GELU between them."""

    def __init__(self, config: ToyViTConfig) -> None:
        """Make the matrices."""
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.d_mlp)
        self.fc2 = nn.Linear(config.d_mlp, config.d_model)

    def forward(self, x: Float[Tensor, "image token d_model"]) -> Float[Tensor, "image token d_model"]:
        """What the MLP adds to the residual stream, given its (normalised) input."""
        return self.fc2(F.gelu(self.fc1(x)))


def _norm(config: ToyViTConfig) -> nn.Module:
    return nn.LayerNorm(config.d_model) if config.layer_norm else nn.Identity()


class Block(nn.Module):
    """One layer: what attention reads from the stream and adds to it, then the MLP likewise."""

    def __init__(self, config: ToyViTConfig) -> None:
        """Make the layer; an attention-only one has neither MLP nor a norm before it."""
        super().__init__()
        self.ln1 = _norm(config)
        self.attention = Attention(config)
        self.ln2 = None if config.attention_only else _norm(config)
        self.mlp = None if config.attention_only else MLP(config)

    def forward(self, resid: Float[Tensor, "image token d_model"]) -> Float[Tensor, "image token d_model"]:
        """The residual stream after the block, given the one before it."""
        resid = resid + self.attention(self.ln1(resid))
        return resid if self.mlp is None or self.ln2 is None else resid + self.mlp(self.ln2(resid))


class Embeddings(nn.Module):
    """Patches as vectors, with the tokens before them and with positions."""

    def __init__(self, config: ToyViTConfig) -> None:
        """Make the matrix of patches, the extra tokens and the positions."""
        super().__init__()
        self.config = config
        size = config.tubelet_size * config.n_channels * config.patch_size**2
        self.patch = nn.Linear(size, config.d_model)
        self.prefix = nn.Parameter(torch.zeros(config.n_prefix, config.d_model))
        self.positions = nn.Parameter(torch.zeros(config.n_prefix + config.n_patches, config.d_model))

    def forward(self, pixels: Float[Tensor, "image *frame channel row column"]) -> Tensor:
        """[image, token, d_model]: CLS, registers, then patches frame by frame and row by row."""
        embed = self.patch(self._patches(pixels).to(self.patch.weight.dtype))
        prefix = self.prefix.to(embed.dtype).expand(len(embed), -1, -1)
        return torch.cat([prefix, embed], dim=1) + self.positions

    def _patches(self, pixels: Tensor) -> Float[Tensor, "image patch pixel"]:
        size, tubelet = self.config.patch_size, self.config.tubelet_size
        frames = pixels if pixels.ndim == 5 else pixels.unsqueeze(1)
        cut = frames.unfold(1, tubelet, tubelet).unfold(3, size, size).unfold(4, size, size)
        # image, frame, channel, row, column, then inside a tubelet: frame, row, column
        return cut.permute(0, 1, 3, 4, 2, 5, 6, 7).flatten(4).flatten(1, 3)


class ToyViT(PreTrainedModel):
    """A vision transformer small enough to train on a CPU, with a head that classifies."""

    config: ToyViTConfig
    config_class = ToyViTConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["Block"]

    def __init__(self, config: ToyViTConfig) -> None:
        """Make the model; ``initialised`` gives seeded weights."""
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_final = _norm(config)
        self.head = nn.Linear(config.d_model, config.n_classes)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave weights to ``initialised``: they are drawn from its generator alone."""

    @classmethod
    def initialised(cls, config: ToyViTConfig, generator: torch.Generator) -> ToyViT:
        """A model with random weights drawn from ``generator`` alone.

        Matrices are Glorot-uniform, biases zero, CLS and registers N(0, 0.02²). Positions are N(0, 0.5²), on
        the scale of embedded patches: at the customary 0.02 they drown in it for the first epochs.
        """
        with torch.device("meta"):  # torch's own initial weights would be drawn from its global generator
            model = cls(config)
        model.to_empty(device="cpu")
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.normal_(model.embeddings.prefix, std=0.02, generator=generator)
        nn.init.normal_(model.embeddings.positions, std=0.5, generator=generator)
        return model

    def forward(
        self, pixel_values: Float[Tensor, "image *frame channel row column"], **_: Any
    ) -> ImageClassifierOutput:
        """Logits [image, class] of pixels in [0, 1].

        Raises:
            ValueError: when the pixels are not of the configured shape.
        """
        self._check_shape(pixel_values)
        resid = self.embeddings(pixel_values)
        for block in self.blocks:
            resid = block(resid)
        final = self.ln_final(resid)
        features = final[:, 0] if self.config.pooling == "cls" else final[:, self.config.n_prefix :].mean(1)
        return ImageClassifierOutput(logits=self.head(features))

    def _check_shape(self, pixels: Tensor) -> None:
        size, frames = self.config.image_size, self.config.n_frames
        still = (self.config.n_channels, size, size)
        expected = (frames, *still) if frames > 1 else still
        if tuple(pixels.shape[1:]) != expected:
            dims = "(frame, channel, row, column)" if frames > 1 else "(channel, row, column)"
            raise ValueError(
                f"pixels have shape {tuple(pixels.shape)}; the model takes (image, *{dims}) with {dims} = "
                f"{expected}"
            )
