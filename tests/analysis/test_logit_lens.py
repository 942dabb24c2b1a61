"""The logit lens against the model's own logits, and against each family's head applied token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prisma_steps.analysis.logit_lens import (
    exit_logits,
    lens_bytes,
    rate,
    residual_stream,
    token_logits,
    top_classes,
)
from prisma_steps.models.heads import LinearProbe, ZeroShotHead
from prisma_steps.models.hooked import HookedViT
from tests.models.families import make_classifier, pixels_for

#: Float64 sums of a few dozen terms of size 1, in another order; a zero-shot head multiplies by 20.
EXACT = {"rtol": 0, "atol": 1e-12}


def alone(vit: HookedViT, token: Tensor) -> Tensor:
    """The logits of one token [d_model]: final norm and head of each family, written out."""
    norm, head = vit.final_norm, vit.unembedding
    normed = token if norm is None else norm(token)
    if isinstance(head, LinearProbe):
        read = normed if vit.norm_scope == "all" else token  # CLIP norms what it pools alone
        return head.weight @ torch.cat([read] * (head.weight.shape[1] // len(read))) + head.bias
    if isinstance(head, ZeroShotHead):
        projection = getattr(vit.model, "visual_projection", None)
        if projection is not None:
            image = projection.weight @ normed
        else:  # SigLIP attends to the tokens: all are this one
            image = vit.trunk.head(normed.expand(1, 9, -1))[0]
        return head.scale * head.text @ F.normalize(image, dim=0) + head.bias
    if hasattr(vit.model, "pooler"):  # V-JEPA 2 attends to the tokens
        normed = vit.model.pooler(normed.expand(1, 9, -1))[0]
    return head.weight @ torch.cat([normed] * (head.in_features // len(normed))) + head.bias


def test_a_token_is_read_as_the_familys_head_reads_it_alone(classifier):
    for resid in residual_stream(classifier, pixels_for(classifier)):
        found = token_logits(classifier, resid)
        for image in range(2):
            for token in range(resid.shape[1]):
                expected = alone(classifier, resid[image, token])
                torch.testing.assert_close(found[image, token], expected, **EXACT)


def test_the_stream_at_the_end_is_the_models_answer(classifier):
    pixels = pixels_for(classifier)
    stream = residual_stream(classifier, pixels)
    assert len(stream) == classifier.n_layers + 1
    torch.testing.assert_close(exit_logits(classifier, stream[-1]), classifier(pixels), **EXACT)


@pytest.mark.parametrize("name", ["toy", "toy video", "vit", "deit", "vivit", "timesformer", "timm", "clip"])
def test_the_token_that_a_head_reads_has_the_models_logits(name):
    vit = make_classifier(name)
    pixels = pixels_for(vit)
    found = token_logits(vit, residual_stream(vit, pixels)[-1])[:, 0]
    # Float32: the same products in another batch; those of the zero-shot head are multiplied by 20.
    torch.testing.assert_close(found, vit(pixels), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "name", ["toy mean, registers", "ijepa", "siglip", "clip classifier", "timm any size, no CLS"]
)
def test_where_normed_tokens_are_averaged_the_answer_is_the_mean_over_patches(name):
    vit = make_classifier(name, torch.float64)
    pixels = pixels_for(vit)
    found = token_logits(vit, residual_stream(vit, pixels)[-1])
    patches = found[:, vit.token_coords()["token_kind"] == "patch"]
    torch.testing.assert_close(patches.mean(1), vit(pixels), **EXACT)


def test_the_first_stream_is_the_embedding_and_each_is_that_before_its_block(classifier):
    pixels = pixels_for(classifier)
    _, cache = classifier.run_with_cache(pixels, ["full_embed", "resid_post"])
    stream = residual_stream(classifier, pixels)
    assert torch.equal(stream[0], cache["full_embed", None])
    assert torch.equal(stream[1], cache["resid_post", 0])
    assert torch.equal(stream[2], cache["resid_post", 1])


def test_ratings_by_a_loop():
    logits = torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[0, 0, 0] = torch.tensor([1.0, 5.0, 5.0, 2.0, 5.0, 0.0])  # the correct class shares the top
    classes = torch.tensor([2, 0, 5])
    found = rate(logits, classes)
    tops, numbers = top_classes(logits, 3)
    for image, layer, token in np.ndindex(3, 2, 4):
        row, correct = logits[image, layer, token].numpy(), classes[image].item()
        at = (image, layer, token)
        probability = np.exp(row[correct]) / np.exp(row).sum()
        assert found.logit[at] == row[correct]
        assert found.rank[at] == sum(value > row[correct] for value in row)
        assert found.probability[at].item() == pytest.approx(probability, rel=1e-12)
        assert found.ce[at].item() == pytest.approx(-np.log(probability), rel=1e-12)
        assert tops[at].tolist() == sorted(row.tolist(), reverse=True)[:3]
        assert row[numbers[at].numpy()].tolist() == tops[at].tolist()
    assert found.rank[0, 0, 0] == 0


def test_memory_is_that_of_all_tokens_and_layers():
    small, large = make_classifier("toy"), make_classifier("toy video")
    assert lens_bytes(large) / lens_bytes(small) == pytest.approx(9 / 5)
    assert lens_bytes(small) >= 4 * 5 * (5 + 3 * 12)
