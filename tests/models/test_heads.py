"""Heads: what they compute, and that their file holds all of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from prisma_steps.models.heads import LinearProbe, ZeroShotHead, features_of, head_files, load_head
from prisma_steps.models.hooked import HookedViT
from prisma_steps.step import StepError
from tests.models.families import make

HIDDEN = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))


def test_features_leave_out_registers():
    patches = torch.stack([HIDDEN[:, token] for token in (2, 3, 4, 5)]).sum(0) / 4
    torch.testing.assert_close(features_of(HIDDEN, "mean_patch", 2), patches)
    assert torch.equal(features_of(HIDDEN, "cls", 2), HIDDEN[:, 0])
    torch.testing.assert_close(
        features_of(HIDDEN, "cls_mean_patch", 2), torch.cat([HIDDEN[:, 0], patches], -1)
    )


def test_zero_shot_logits_are_scaled_and_shifted_cosines():
    text, image = torch.randn(5, 4), torch.randn(3, 4)
    head = ZeroShotHead(text, 50.0, -10.0)
    found = head(SimpleNamespace(image_embeds=image, pooler_output=None))
    for row in range(3):
        for column in range(5):
            cosine = image[row] @ text[column] / (image[row].norm() * text[column].norm())
            assert found[row, column].item() == pytest.approx(50 * cosine.item() - 10, abs=1e-4)


@pytest.mark.parametrize(
    "head",
    [
        LinearProbe(torch.randn(5, 8), torch.randn(5), "cls_mean_patch", 2),
        ZeroShotHead(torch.randn(5, 4), 31.5, -2.5),
    ],
)
def test_a_head_is_opened_as_it_was_saved(head, tmp_path):
    for name, write in head_files(head).items():
        write(tmp_path / name)
        for _ in range(20):  # whatever is written in random order, is written in another one soon
            write(tmp_path / "again")
            assert (tmp_path / "again").read_bytes() == (tmp_path / name).read_bytes()
    opened = load_head(tmp_path)
    assert opened is not None and opened.out_features == 5
    returned = SimpleNamespace(last_hidden_state=HIDDEN, image_embeds=HIDDEN[:, 0])
    # Normalised anew when it is opened: float32 rounding of a unit vector.
    torch.testing.assert_close(opened(returned), head(returned), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    "head", [LinearProbe(torch.randn(5, 12), torch.randn(5), "cls", 1), ZeroShotHead(torch.randn(5, 7), 30.0)]
)
def test_a_head_of_a_model_in_bfloat16_computes_in_float32(head):
    model = make("vit bare" if isinstance(head, LinearProbe) else "clip")
    fast = HookedViT(model.model, head).for_inference("bfloat16")
    pixels = torch.rand(2, *model.input_shape).bfloat16()
    with torch.no_grad():
        logits, expected = fast(pixels), head(fast.model(pixels))
    assert logits.dtype == torch.float32 and torch.equal(logits, expected)


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(StepError, match="of the kind None, expected LinearProbe or ZeroShotHead"):
        load_head(tmp_path)
    assert load_head(tmp_path / "empty") is None
