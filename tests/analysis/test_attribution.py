"""Direct logit attribution: sums, brute force on written-out models, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from prisma_steps.analysis import attribution
from prisma_steps.analysis.attribution import attribute, components_of
from prisma_steps.analysis.linear_readout import read_out, with_scale_of
from prisma_steps.models.hooked import HookedViT
from prisma_steps.step import StepError
from tests.models.families import CLASSIFIERS, make, make_classifier, pixels_for

#: Heads that attend, whose logits are no sum.
ATTENDING = ("siglip bare", "vjepa2")

LINEAR = [name for name in CLASSIFIERS if name not in ATTENDING]

PLUS, MINUS = torch.tensor([1, 2]), torch.tensor([0, 4])

#: Float64 sums of a few hundred terms of size 1, in another order.
EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.mark.parametrize("minus", [None, MINUS])
@pytest.mark.parametrize("name", LINEAR)
def test_components_sum_to_the_logit(name, minus):
    vit = make_classifier(name, torch.float64)
    pixels = pixels_for(vit)
    logits = vit(pixels)
    expected = logits[[0, 1], PLUS] - (0 if minus is None else logits[[0, 1], minus])
    found = attribute(vit, pixels, PLUS, minus)
    torch.testing.assert_close(found.logit, expected, **EXACT)
    # A zero-shot head multiplies by 20, others by 1.
    torch.testing.assert_close(found.contribution.sum(1), expected, rtol=0, atol=1e-11)
    assert found.contribution.shape[1] == len(found.components) == found.by_token.shape[1]


@pytest.mark.parametrize("name", LINEAR)
def test_components_sum_to_the_logit_in_float32(name):
    vit = make_classifier(name)
    pixels = pixels_for(vit)
    found = attribute(vit, pixels, PLUS)
    expected = vit(pixels)[[0, 1], PLUS].double()
    assert (found.contribution.sum(1) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ATTENDING)
def test_a_head_that_attends_is_refused(name):
    vit = make_classifier(name)
    with pytest.raises(StepError, match="the model's head is no linear map of the normed residual stream"):
        attribute(vit, pixels_for(vit), PLUS)


def direction_of(vit: HookedViT, resid: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """W_U of a class, back through the final norm with its scale: what x·direction + constant is a logit."""
    norm = vit.final_norm
    scale = (resid.var(-1, unbiased=False, keepdim=True) + norm.eps) ** -0.5
    through = norm.weight * weight
    return (through - through.mean()) * scale


@pytest.mark.parametrize("name", ["toy", "vit", "timm", "toy mean, registers", "siglip"])
def test_each_component_is_its_write_times_the_direction(name):
    """Brute force: every head's, MLP's and bias's write, formed in full, token by token."""
    vit = make_classifier(name, torch.float64)
    pixels = pixels_for(vit)
    _, cache = vit.run_with_cache(pixels)
    found = attribute(vit, pixels, PLUS)
    tokens = vit.token_coords()["token_kind"]
    reads = [0] if "cls" in tokens else [at for at, kind in enumerate(tokens) if kind == "patch"]
    for image in range(2):
        written = {}
        for at in reads:
            resid = cache["resid_post", 1][image, at]
            direction = direction_of(vit, resid, vit.weights["W_U", None][:, PLUS[image]]) / len(reads)
            parts = writes(vit, cache, image, at)
            parts["final_norm_bias"] = vit.final_norm.bias
            ahead = vit.weights["W_U", None][:, PLUS[image]] / len(reads)
            for part, value in parts.items():
                way = ahead if part == "final_norm_bias" else direction
                written.setdefault(part, {})[at] = value @ way
        for place, component in enumerate(found.components[:-1]):
            by_token = written.get(component.name, {})
            for at in range(len(tokens)):
                expected = torch.as_tensor(by_token.get(at, 0.0), dtype=torch.float64)
                torch.testing.assert_close(found.by_token[image, place, at], expected, **EXACT)
            total = torch.as_tensor(sum(by_token.values()), dtype=torch.float64)
            torch.testing.assert_close(found.contribution[image, place], total, **EXACT)
        torch.testing.assert_close(
            found.contribution[image, -1], vit.weights["b_U", None][PLUS[image]], **EXACT
        )
    assert found.components[-1].name == "unembedding_bias" and found.by_token[:, -1].isnan().all()


def writes(vit: HookedViT, cache, image: int, at: int) -> dict[str, torch.Tensor]:
    """What each component writes to one token: [d_model]."""
    kinds = vit.token_coords()["token_kind"]
    full, n_prefix = cache["full_embed", None][image, at], int((kinds != "patch").sum())
    if kinds[at] == "patch":
        patch = cache["embed", None][image, at - n_prefix]
        parts = {"embedding": patch, "position": full - patch}
    else:
        parts = {f"{kinds[at]}_token": full}
    for layer in range(vit.n_layers):
        for head in range(vit.n_heads):
            parts[f"head_{layer}.{head}"] = cache["result", layer][image, at, head]
        parts[f"attn_bias_{layer}"] = vit.weights["b_O", layer]
        parts[f"mlp_{layer}"] = cache["mlp_post", layer][image, at] @ vit.weights["W_out", layer]
        parts[f"mlp_bias_{layer}"] = vit.weights["b_out", layer]
    return parts


@pytest.mark.parametrize("name", ["dinov2", "beit", "timm mean of patches, QK-norm"])
def test_layer_scale_is_in_what_a_component_adds(name):
    vit = make_classifier(name, torch.float64)
    pixels = pixels_for(vit)
    _, cache = vit.run_with_cache(pixels)
    found = attribute(vit, pixels, PLUS)
    direction = read_out(vit, cache["resid_post", 1], PLUS).direction
    names = [component.name for component in found.components]
    for layer in range(2):
        wrote = [f"head_{layer}.{head}" for head in range(3)] + [f"attn_bias_{layer}"]
        for sites, parts in (("attn_out", wrote), ("mlp_out", [f"mlp_{layer}", f"mlp_bias_{layer}"])):
            expected = (cache[sites, layer] * direction).sum((1, 2))
            total = found.contribution[:, [names.index(part) for part in parts]].sum(1)
            torch.testing.assert_close(total, expected, **EXACT)


def test_positions_are_the_models_parameters():
    """Of a toy the positions themselves; of CLIP, whose norm comes after them, with that norm's scale."""
    vit = make_classifier("toy mean, registers", torch.float64)
    pixels = pixels_for(vit)
    found = attribute(vit, pixels, PLUS)
    direction = read_out(vit, vit.read(pixels, ["resid_post"])["resid_post", 1], PLUS).direction
    expected = (vit.model.embeddings.positions[2:] * direction[:, 2:]).sum(-1)
    torch.testing.assert_close(found.by_token[:, 1, 2:], expected, **EXACT)

    clip = make_classifier("clip classifier", torch.float64)
    pixels = pixels_for(clip)
    found = attribute(clip, pixels, PLUS)
    names = [component.name for component in found.components[:4]]
    assert names == ["embedding", "position", "cls_token", "embedding_norm_bias"]
    inner, norm = clip.trunk.embeddings, clip.pre_norm
    direction = read_out(clip, clip.read(pixels, ["resid_post"])["resid_post", 1], PLUS).direction
    embedded = inner(pixels)
    scale = (embedded.var(-1, unbiased=False, keepdim=True) + norm.eps) ** -0.5
    position = inner.position_embedding.weight
    normed = (position - position.mean(-1, keepdim=True)) * scale * norm.weight
    torch.testing.assert_close(found.by_token[:, 1, 1:], (normed * direction)[:, 1:].sum(-1), **EXACT)
    torch.testing.assert_close(found.by_token[:, 3], direction @ norm.bias, **EXACT)


def test_rotary_models_have_no_positions_in_the_stream():
    vit = make_classifier("dinov3_vit", torch.float64)
    found = attribute(vit, pixels_for(vit), PLUS)
    assert [component.name for component in found.components[:4]] == [
        "embedding",
        "position",
        "cls_token",
        "register_token",
    ]
    assert found.contribution[:, 1].abs().max() == 0 and found.contribution[:, 0].abs().min() > 0


def test_the_bias_of_a_norm_of_pooled_tokens_is_of_no_token():
    vit = make_classifier("timm mean of patches, QK-norm", torch.float64)
    found = attribute(vit, pixels_for(vit), PLUS)
    place = [component.kind for component in found.components].index("final_norm_bias")
    assert found.by_token[:, place].isnan().all()
    expected = vit.weights["W_U", None][:, PLUS].T @ vit.final_norm.bias
    torch.testing.assert_close(found.contribution[:, place], expected, **EXACT)


def test_a_zero_shot_logit_is_a_cosine_with_the_length_kept():
    vit = make_classifier("clip", torch.float64)
    pixels = pixels_for(vit)
    _, cache = vit.run_with_cache(pixels, ["resid_post"])
    found = attribute(vit, pixels, PLUS)
    cls = cache["resid_post", 1][:, 0]
    image = vit.model.visual_projection(vit.final_norm(cls))
    text = vit.model.visual_projection.weight.T @ vit.head.text[PLUS].T
    directions = (20 / image.norm(dim=-1) * text).T
    expected = (with_scale_of(vit.final_norm, cache["resid_post", 0][:, 0], cls) * directions).sum(-1)
    n_before = next(at for at, part in enumerate(found.components) if part.layer == 1)
    total = found.contribution[:, :n_before].sum(1)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-11)
    assert found.contribution[:, -1].tolist() == pytest.approx([-3, -3])
    assert attribute(vit, pixels, PLUS, MINUS).contribution[:, -1].abs().max() == 0


def test_a_head_whose_write_is_removed_takes_its_contribution_along():
    """On a model without a final norm the logit is linear: what ablation of the last layer takes is exact."""
    vit = make_classifier("toy bare", torch.float64)
    pixels = pixels_for(vit)
    found = attribute(vit, pixels, PLUS)
    names = [component.name for component in found.components]
    for head in range(3):

        def without(z: torch.Tensor, head: int = head) -> torch.Tensor:
            z = z.clone()
            z[:, :, head] = 0
            return z

        ablated = vit.run_with_hooks(pixels, {("z", 1): without})
        taken = (vit(pixels) - ablated)[[0, 1], PLUS]
        torch.testing.assert_close(found.contribution[:, names.index(f"head_1.{head}")], taken, **EXACT)


def test_a_model_whose_heads_cannot_be_told_apart_has_its_attention_whole():
    vit = make_classifier("timesformer")
    assert [part.name for part in components_of(vit)] == [
        *("embedding", "position", "cls_token"),
        *("attn_0", "mlp_0", "mlp_bias_0", "attn_1", "mlp_1", "mlp_bias_1"),
        *("final_norm_bias", "unembedding_bias"),
    ]


def test_the_model_is_left_as_it_was():
    vit = make_classifier("vit")
    pixels = pixels_for(vit)
    before = vit(pixels)
    attribute(vit, pixels, PLUS)
    assert torch.equal(vit(pixels), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.model.modules())
    assert all(weight.grad is None for weight in vit.model.parameters())


def test_another_norm_is_refused():
    vit = make("vit")
    vit.model.vit.layernorm = torch.nn.RMSNorm(12)
    with pytest.raises(StepError, match="the norm is RMSNorm, and only a LayerNorm's scale can be frozen"):
        attribute(vit, pixels_for(vit), PLUS)


def test_a_norm_with_the_scale_of_the_whole_is_linear_and_whole():
    norm = torch.nn.LayerNorm(6).double()
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    a, b = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = with_scale_of(norm, a, a + b) + with_scale_of(norm, b, a + b)
    torch.testing.assert_close(parts, F.layer_norm(a + b, (6,), norm.weight), **EXACT)


def test_a_sum_that_is_off_is_told(monkeypatch):
    vit = make_classifier("toy")
    monkeypatch.setattr(attribution, "TOLERANCE", 0.0)
    with pytest.raises(StepError, match="a logit is .*, and the sum of its components"):
        attribute(vit, pixels_for(vit), PLUS)
