"""The toy ViT: parity with the ViT and the ViViT of transformers, its variants, and its files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import SiteError
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.schema import SITE_DIMS
from tests.models.families import TOY, make, pixels_for

HF: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 8,
    "num_channels": 2,
    "num_labels": 5,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
}

#: float64 throughout: only the order of summation differs.
EXACT = {"rtol": 0, "atol": 1e-12}


def close(found, expected):
    torch.testing.assert_close(found, expected, **EXACT)


def seeded(**changes: Any) -> ToyViT:
    """A model in float64 of which no weight is zero."""
    model = ToyViT.initialised(ToyViTConfig(**{**TOY, **changes}), torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


@pytest.mark.parametrize("kind", ["image", "video"])
def test_output_is_that_of_transformers(kind):
    if kind == "image":
        ours = seeded()
        theirs: Any = transformers.ViTForImageClassification(transformers.ViTConfig(**HF, patch_size=4))
    else:
        ours = seeded(n_frames=6, tubelet_size=2)
        config = transformers.VivitConfig(**HF, num_frames=6, tubelet_size=[2, 4, 4])
        theirs = transformers.VivitForVideoClassification(config)
    theirs = theirs.double().eval()
    theirs.load_state_dict(_as_transformers(ours, theirs.state_dict()))
    pixels = pixels_for(HookedViT(ours))
    with torch.no_grad():
        out = theirs(pixels, output_hidden_states=True)
        logits, cache = HookedViT(ours).run_with_cache(pixels, ["full_embed", "resid_post"])
    close(logits, out.logits)
    close(cache["full_embed", None], out.hidden_states[0])
    close(cache["resid_post", 0], out.hidden_states[1])


def _as_transformers(model: ToyViT, theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights under the names that transformers uses."""
    ours = dict(model.state_dict())
    renamed = {}
    for name, value in theirs.items():
        renamed[name] = ours.pop(_our_name(name)).reshape(value.shape)
    assert not ours, f"left over: {list(ours)}"
    return renamed


def _our_name(name: str) -> str:
    words = name.split(".")
    if words[0] == "classifier":
        return f"head.{words[1]}"
    inner = ".".join(words[1:])
    for theirs, ours in {
        "embeddings.cls_token": "embeddings.prefix",
        "embeddings.position_embeddings": "embeddings.positions",
        "embeddings.patch_embeddings.projection": "embeddings.patch",
        "layernorm.": "ln_final.",
    }.items():
        if inner.startswith(theirs):
            return inner.replace(theirs, ours)
    return (
        inner.replace("layers.", "blocks.")
        .replace("layernorm_before", "ln1")
        .replace("layernorm_after", "ln2")
    )


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"attention_only": True}, {"ln2_out", "mlp_pre", "mlp_post", "mlp_out"}),
        ({"layer_norm": False}, {"ln1_out", "ln2_out", "ln_final"}),
        ({}, set()),
    ],
)
def test_sites_of_parts_left_out_do_not_exist(changes, missing):
    model = HookedViT(ToyViT(ToyViTConfig(**TOY, **changes)))
    assert set(SITE_DIMS) - set(model.sites) == missing
    for site in missing:
        with pytest.raises(SiteError, match=f"no site '{site}'.*Its sites: embed, full_embed, resid_pre"):
            model.run_with_cache(torch.zeros(1, 2, 8, 8), [site])


def test_layer_norm_outputs_include_scale_and_shift():
    model = HookedViT(seeded())
    cache = model.run_with_cache(pixels_for(model), ["resid_pre", "ln1_out"])[1]
    x, norm = cache["resid_pre", 1], model.part(1, "ln1")
    centred = x - x.mean(-1, keepdim=True)
    normalised = centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    close(cache["ln1_out", 1], normalised * norm.weight + norm.bias)


def test_mlp_is_gelu_between_two_matrices():
    model = HookedViT(seeded())
    cache = model.run_with_cache(pixels_for(model), ["mlp_pre", "mlp_post"])[1]
    pre = cache["mlp_pre", 0]
    close(cache["mlp_post", 0], pre * (1 + torch.erf(pre / 2**0.5)) / 2)


def test_mean_pooling_reads_patches_only():
    model = make("toy mean, registers", torch.float64)
    logits, cache = model.run_with_cache(pixels_for(model), ["ln_final"])
    assert cache.data.token_kind.values.tolist() == ["register"] * 2 + ["patch"] * 4
    close(logits, model.model.head(cache["ln_final", None][:, 2:].mean(1)))


def test_patches_are_numbered_frame_by_frame_and_row_by_row_after_cls():
    model = HookedViT(seeded(n_frames=4, tubelet_size=2))
    pixels, coords = pixels_for(model), model.token_coords()
    assert coords["token_kind"].tolist() == ["cls", *["patch"] * 8]
    assert coords["patch_frame"].tolist() == [-1, 0, 0, 0, 0, 1, 1, 1, 1]
    assert coords["patch_row"].tolist() == [-1, 0, 0, 1, 1, 0, 0, 1, 1]
    assert coords["patch_col"].tolist() == [-1, 0, 1, 0, 1, 0, 1, 0, 1]
    places = [coords[f"patch_{name}"] * size for name, size in {"frame": 2, "row": 4, "col": 4}.items()]
    for token in range(1, 9):
        frame, row, column = (place[token] for place in places)
        changed = pixels.clone()
        changed[:, frame : frame + 2, :, row : row + 4, column : column + 4] += 1
        before, after = (model.run_with_cache(x, ["embed"])[1]["embed", None] for x in (pixels, changed))
        moved = np.flatnonzero((after - before).abs().amax((0, 2)).detach().numpy())
        assert moved.tolist() == [token - 1]


def test_weights_are_drawn_from_the_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (
        ToyViT.initialised(ToyViTConfig(**TOY), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_gradients_reach_every_parameter():
    model = seeded()
    model(pixels_for(HookedViT(model))).logits.square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    # A bias of the keys moves every score of a query alike, which softmax does not see.
    assert all(name.endswith("attention.k_proj.bias") for name in without), without


def test_it_is_saved_and_opened_as_transformers_does(tmp_path):
    model = seeded(n_registers=2).float()
    model.save_pretrained(tmp_path)
    opened = ToyViT.from_pretrained(tmp_path)
    pixels = pixels_for(HookedViT(model))
    assert torch.equal(opened(pixels).logits, model(pixels).logits)
    assert opened.config.n_registers == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 5}, "n_heads 5 does not divide d_model 12"),
        ({"patch_size": 3}, "patch_size 3 does not divide the image size 8"),
        ({"n_frames": 3, "tubelet_size": 2}, "tubelet_size 2 does not divide the 3 frames"),
        ({"pooling": "max"}, "pooling is 'max', expected 'cls' or 'mean'"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ToyViTConfig(**{**TOY, **changes})


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 2, 8, 7), (3, 2, 16, 16)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(channel, row, column\) = \(2, 8, 8\)"):
        seeded()(torch.zeros(shape, dtype=torch.float64))
