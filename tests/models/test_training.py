from __future__ import annotations

from dataclasses import replace
from math import cos, log, pi

import pytest
import torch

from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.models.training import (
    Classified,
    DivergedError,
    Settings,
    Trainer,
    evaluate,
    learning_rate,
)

CONFIG = ToyViTConfig(
    n_layers=1, d_model=16, n_heads=2, d_mlp=32, patch_size=4, image_size=8, n_channels=1, n_classes=4
)
SETTINGS = Settings(
    epochs=3,
    batch_size=8,
    learning_rate=1e-2,
    weight_decay=0.1,
    warmup=4,
    gradient_clip=1.0,
    compute_dtype="float32",
    evaluations=2,
    seed=0,
    schedule="cosine",
    step_size=200,
    gamma=0.8,
    patience=None,
)


def quadrants(count: int) -> Classified:
    """Noise whose class is the quadrant that is bright."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, 4, (count,), generator=generator)
    pixels = torch.randint(0, 60, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 190
    return Classified(pixels, labels)


def make_trainer(train: Classified | None = None, validation: Classified | None = None, **changes) -> Trainer:
    model = ToyViT.initialised(CONFIG, torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, **changes)
    return Trainer(model, train or quadrants(60), quadrants(20), settings, "cpu", validation)


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, 24, SETTINGS) for step in range(24)]
    assert rates[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert rates[14] == pytest.approx(0.005)
    assert rates[-1] == pytest.approx(0.01 * (1 + cos(pi * 19 / 20)) / 2)
    assert learning_rate(0, 24, replace(SETTINGS, warmup=0)) == 0.01


def test_a_warmup_longer_than_the_run_is_cut_off_where_the_run_ends():
    assert learning_rate(9, 10, replace(SETTINGS, warmup=40)) == pytest.approx(0.0025)


def test_the_published_schedule_falls_by_a_fifth_every_200_steps_after_10_of_warmup():
    published = replace(SETTINGS, learning_rate=1e-4, warmup=10, schedule="step", step_size=200, gamma=0.8)
    rates = [learning_rate(step, 10800, published) for step in range(10800)]
    assert rates[:10] == pytest.approx([1e-5 * n for n in range(1, 11)])
    assert rates[10:210] == [1e-4] * 200
    assert rates[210] == rates[409] == pytest.approx(0.8e-4)
    assert rates[410] == pytest.approx(0.64e-4)
    assert rates[10799] == pytest.approx(1e-4 * 0.8**53)
    assert sum(rates) < 1.01e-4 * (5.5 + 1000), "a geometric series: no more than 1000 steps at the full rate"


def test_falls_are_those_of_pytorch():
    settings = replace(SETTINGS, warmup=0, schedule="step", step_size=7, gamma=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.5)
    for step in range(30):
        # PyTorch multiplies again and again, we take a power
        assert learning_rate(step, 30, settings) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_constant_rate_stays_after_the_warmup():
    constant = replace(SETTINGS, schedule="constant")
    assert [learning_rate(step, 24, constant) for step in range(24)] == [
        *[0.0025, 0.005, 0.0075],
        *[0.01] * 21,
    ]


def test_every_epoch_shows_every_image_once_in_another_order():
    trainer = make_trainer()
    epochs = [[trainer._images(step).tolist() for step in range(8 * e, 8 * e + 8)] for e in range(2)]
    assert [len(batch) for batch in epochs[0]] == [8] * 7 + [4]
    first, second = (sum(batches, []) for batches in epochs)
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second


def test_history_has_entries_equally_often_in_every_epoch_and_at_its_end():
    trainer = make_trainer()
    trainer.run(lambda *_: None)
    history = trainer.progress.history
    assert history["step"] == [4, 8, 12, 16, 20, 24]
    assert history["epoch"] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert all(len(values) == 6 for values in history.values())
    assert history["learning_rate"] == [learning_rate(step - 1, 24, SETTINGS) for step in history["step"]]


def test_training_metrics_are_means_over_the_images_since_the_last_entry():
    trainer, losses = make_trainer(epochs=1, evaluations=1), []
    trainer.run(lambda _, loss: losses.append(loss))
    sizes = [8] * 7 + [4]
    expected = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / 60
    assert trainer.progress.history["train_loss"] == [pytest.approx(expected, rel=1e-12)]


def test_recorded_test_metrics_are_those_of_the_final_weights():
    trainer = make_trainer()
    trainer.run(lambda *_: None)
    with torch.no_grad():
        logits = trainer.model(trainer.test.pixels / 255).logits
    nll = -logits.log_softmax(-1)[torch.arange(20), trainer.test.labels]
    # float32 means of 20 terms, summed in another order
    assert trainer.progress.history["test_loss"][-1] == pytest.approx(nll.mean().item(), rel=1e-5)
    correct = (logits.argmax(-1) == trainer.test.labels).sum().item()
    assert trainer.progress.history["test_accuracy"][-1] == correct / 20


def test_evaluation_does_not_depend_on_where_the_batches_end(monkeypatch):
    model, images = make_trainer().model, quadrants(20)
    whole = evaluate(model, images, "cpu")
    monkeypatch.setattr("prisma_steps.models.training.TEST_FRAMES", 7)
    assert evaluate(model, images, "cpu") == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_a_quadrant_is_learnt(compute_dtype):
    trainer = make_trainer(quadrants(400), epochs=6, compute_dtype=compute_dtype)
    trainer.run(lambda *_: None)
    assert trainer.progress.history["test_accuracy"][-1] >= 0.8  # chance is 0.25
    assert trainer.progress.history["test_loss"][-1] < log(4) / 2  # chance is log 4
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_matrices_are_decayed_and_nothing_else():
    decayed, others = make_trainer().optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert len(decayed["params"]) == 8 and len(others["params"]) == 16


def test_gradient_is_clipped():
    trainer = make_trainer(gradient_clip=1e-3, epochs=1)
    trainer._step()
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_names_its_step():
    trainer = make_trainer()

    def spoil(trainer, _):
        if trainer.progress.step == 5:
            trainer.model.head.bias.data.fill_(torch.nan)

    with pytest.raises(DivergedError, match="became nan at optimiser step 6"):
        trainer.run(spoil)


# --- early stopping


def unlearnable(count: int) -> Classified:
    """Images as for training, with classes that are wrong: the better a model is, the higher its loss."""
    images = quadrants(count)
    return Classified(images.pixels, (images.labels + 1) % 4)


def same_weights(model: ToyViT, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_training_stops_once_patience_is_lost_and_leaves_the_best_weights():
    trainer = make_trainer(quadrants(400), unlearnable(100), epochs=20, evaluations=1, patience=3)
    after_epochs = []

    def keep(trainer, _):
        if trainer.progress.step % trainer.steps_per_epoch == 0:
            after_epochs.append(_copy(trainer.model.state_dict()))

    trainer.run(keep)
    losses = trainer.progress.history["validation_loss"]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3 < 20
    assert trainer.progress.step == len(losses) * trainer.steps_per_epoch
    assert [same_weights(trainer.model, weights) for weights in after_epochs].index(True) == best
    assert evaluate(trainer.model, unlearnable(100), "cpu")[0] == min(losses)


def test_training_goes_on_while_the_validation_loss_falls_and_ends_at_the_best():
    whole = make_trainer(quadrants(400), epochs=4, evaluations=1)
    whole.run(lambda *_: None)
    trainer = make_trainer(quadrants(400), quadrants(100), epochs=4, evaluations=1, patience=1)
    trainer.run(lambda *_: None)
    losses = trainer.progress.history.pop("validation_loss")
    assert losses == sorted(losses, reverse=True), "the images are easy: every epoch helps"
    assert trainer.progress.history == whole.progress.history
    assert same_weights(trainer.model, whole.model.state_dict())


def test_what_is_measured_on_the_training_and_test_images_does_not_stop_it():
    # The training loss falls, the test loss too: only the validation, which is hopeless, is listened to.
    trainer = make_trainer(quadrants(400), unlearnable(100), epochs=20, evaluations=1, patience=1)
    trainer.run(lambda *_: None)
    history = trainer.progress.history
    assert trainer.progress.step < trainer.total
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert history["test_loss"][-1] < history["test_loss"][0]


def test_a_validation_loss_that_is_not_finite_names_its_step():
    trainer = make_trainer(validation=quadrants(20), patience=1)

    def spoil(trainer, _):
        if trainer.progress.step == 3:
            trainer._step = lambda: setattr(trainer.progress, "step", 4) or 0.0
            trainer.progress.seen = 1
            trainer.model.head.bias.data.fill_(torch.nan)

    with pytest.raises(DivergedError, match="validation loss became nan at optimiser step 4"):
        trainer.run(spoil)


@pytest.mark.parametrize("stopping", [False, True])
def test_the_state_is_all_that_training_goes_on_from(stopping):
    changes: dict = {"patience": 2, "epochs": 8} if stopping else {}
    validation = unlearnable(30) if stopping else None
    whole = make_trainer(validation=validation, **changes)
    states = []
    whole.run(lambda trainer, _: states.append(_copy(trainer.state())))
    assert whole.has_stopped == stopping
    for state in states:
        resumed = make_trainer(validation=validation, **changes)
        resumed.restore(_copy(state))
        resumed.run(lambda *_: None)
        assert resumed.progress.history == whole.progress.history
        ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _copy(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
