from __future__ import annotations

import pytest
import torch

from prisma_steps.analysis import patching
from prisma_steps.analysis.patching import (
    logit_difference,
    normalise,
    pair_up,
    patch_each_token,
    patch_resid_pre,
    residual_stream,
)
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.seeding import torch_generator

CONFIG = ToyViTConfig(
    n_layers=3, d_model=16, n_heads=2, d_mlp=32, patch_size=4, image_size=8, n_channels=1, n_classes=3
)
N_TOKENS = 5
CLASSES = torch.tensor([[0, 1], [2, 0], [1, 2]])

# Float32: the sweep and the loop add in another order, since they run in batches of other sizes.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return HookedViT(ToyViT.initialised(CONFIG, torch_generator(0, "weights")).eval().requires_grad_(False))


@pytest.fixture(scope="module")
def pixels() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.rand(2, len(CLASSES), 1, 8, 8, generator=torch_generator(0, "pixels")))


def sweep(model: HookedViT, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.stack(list(patch_resid_pre(model, source, target, CLASSES)), dim=1)


def test_every_cell_is_one_hooked_forward(
    model: HookedViT, pixels: tuple[torch.Tensor, torch.Tensor]
) -> None:
    clean, corrupted = pixels
    _, source = residual_stream(model, clean)
    _, target = residual_stream(model, corrupted)
    found = sweep(model, source, target)
    for pair in range(len(CLASSES)):
        for layer in range(CONFIG.n_layers):
            for token in range(N_TOKENS):

                def patch(
                    resid: torch.Tensor, at: tuple[int, int, int] = (pair, layer, token)
                ) -> torch.Tensor:
                    resid = resid.clone()
                    resid[0, at[2]] = source[at]
                    return resid

                logits = model.run_with_hooks(corrupted[pair, None], {("resid_pre", layer): patch})[0]
                expected = logits[CLASSES[pair, 0]] - logits[CLASSES[pair, 1]]
                torch.testing.assert_close(found[pair, layer, token], expected, **CLOSE)


def test_batches_do_not_change_cells(
    model: HookedViT, pixels: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [residual_stream(model, images)[1] for images in pixels]
    whole = sweep(model, *streams)
    monkeypatch.setattr(patching, "CELLS_PER_BATCH", 4)
    torch.testing.assert_close(sweep(model, *streams), whole, **CLOSE)
    torch.testing.assert_close(residual_stream(model, pixels[0])[1], streams[0], **CLOSE)


def test_a_run_patched_into_itself_is_unchanged(
    model: HookedViT, pixels: tuple[torch.Tensor, torch.Tensor]
) -> None:
    logits, stream = residual_stream(model, pixels[0])
    unpatched = logit_difference(logits, CLASSES)
    found = sweep(model, stream, stream)
    torch.testing.assert_close(found, unpatched[:, None, None].expand_as(found), **CLOSE)


def test_all_tokens_of_a_layer_restore_the_source(
    model: HookedViT, pixels: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """One "token" that is the whole stream of a layer: the patched run is the source's run."""
    logits, source = residual_stream(model, pixels[0])
    _, target = residual_stream(model, pixels[1])
    for layer in range(CONFIG.n_layers):
        found = patch_each_token(
            lambda whole, at=layer: model.forward_from(at, whole.view(-1, N_TOKENS, CONFIG.d_model)),
            source[:, layer].reshape(len(CLASSES), 1, -1),
            target[:, layer].reshape(len(CLASSES), 1, -1),
        )
        torch.testing.assert_close(found[:, 0], logits, **CLOSE)


def test_cls_of_layer_0_carries_nothing(model: HookedViT, pixels: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Before the first block, CLS is the same for every image."""
    _, source = residual_stream(model, pixels[0])
    logits, target = residual_stream(model, pixels[1])
    corrupted = logit_difference(logits, CLASSES)
    torch.testing.assert_close(sweep(model, source, target)[:, 0, 0], corrupted, **CLOSE)


def test_target_is_left_as_it_was(model: HookedViT, pixels: tuple[torch.Tensor, torch.Tensor]) -> None:
    source, target = (residual_stream(model, images)[1] for images in pixels)
    before = target.clone()
    sweep(model, source, target)
    assert torch.equal(target, before)


def test_only_layers_from_the_patched_one_on_are_run(model: HookedViT) -> None:
    started = []

    class Watched:
        n_layers = model.n_layers

        def forward_from(self, layer: int, resid_pre: torch.Tensor) -> torch.Tensor:
            started.append(layer)
            return model.forward_from(layer, resid_pre)

    stream = torch.zeros(len(CLASSES), CONFIG.n_layers, N_TOKENS, CONFIG.d_model)
    list(patch_resid_pre(Watched(), stream, stream, CLASSES))
    assert started == [0, 1, 2]


def test_residual_stream_is_that_of_the_model(
    model: HookedViT, pixels: tuple[torch.Tensor, torch.Tensor]
) -> None:
    logits, stream = residual_stream(model, pixels[0])
    torch.testing.assert_close(logits, model(pixels[0]), **CLOSE)
    _, cache = model.run_with_cache(pixels[0], ["full_embed", "resid_post"])
    torch.testing.assert_close(stream[:, 0], cache["full_embed", None], **CLOSE)
    torch.testing.assert_close(stream[:, 2], cache["resid_post", 1], **CLOSE)


def test_logit_difference_of_one_and_of_many_cells() -> None:
    logits = torch.tensor([[5.0, 3.0, 1.0], [5.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert logit_difference(logits, CLASSES).tolist() == [2.0, -4.0, 2.0]
    cells = torch.stack([logits, 10 * logits], dim=1)
    assert logit_difference(cells, CLASSES).tolist() == [[2.0, 20.0], [-4.0, -40.0], [2.0, 20.0]]


def test_normalise_puts_clean_at_1_and_corrupted_at_0() -> None:
    clean, corrupted = torch.tensor([4.0, 1.0]), torch.tensor([-4.0, 3.0])
    cells = torch.tensor([[[4.0, -4.0, 0.0]], [[1.0, 3.0, 7.0]]])
    assert normalise(cells, clean, corrupted).tolist() == [[[1.0, 0.0, 0.5]], [[1.0, 0.0, -2.0]]]


def test_pairs_are_of_two_classes_and_use_images_once() -> None:
    classes = [0, 0, 0, 1, 2, 1, 0]
    assert list(pair_up(range(7), classes, [()] * 7)) == [(0, 3), (1, 4), (2, 5)]


def test_pairs_stay_within_a_group() -> None:
    assert list(pair_up([0, 1, 2, 3], [0, 1, 1, 0], ["a", "b", "a", "b"])) == [(0, 2), (1, 3)]


def test_images_are_taken_only_as_pairs_are_asked_for() -> None:
    taken = iter(range(100))
    pairs = pair_up(taken, [0, 1] * 50, [()] * 100)
    assert next(pairs) == (0, 1)
    assert next(taken) == 2
