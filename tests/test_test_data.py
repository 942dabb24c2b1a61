"""The photographs that other tests ask for."""

from __future__ import annotations

import pytest
from PIL import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_a_split_of_cifar10_comes_as_class_folders_of_so_many_images(cifar10):
    train, test = cifar10("train", 2), cifar10("test", 1)
    assert sorted(folder.name for folder in train.iterdir()) == CLASSES
    assert [len(list((train / name).iterdir())) for name in CLASSES] == [2] * 10
    files = [*train.rglob("*.jpg"), *test.rglob("*.jpg")]
    assert len({file.read_bytes() for file in files}) == 30
    for file in files:
        with Image.open(file) as image:
            assert (image.size, image.mode) == ((32, 32), "RGB")


def test_it_is_always_the_same_images(cifar10):
    one, two = cifar10("test", 1), cifar10("test", 2)
    assert {file.relative_to(one) for file in one.rglob("*.jpg")} <= {
        file.relative_to(two) for file in two.rglob("*.jpg")
    }


@pytest.mark.parametrize(("split", "per_class"), [("test", 201), ("validation", 1)])
def test_what_is_not_there_fails_the_test(cifar10, split, per_class):
    with pytest.raises(pytest.fail.Exception, match=f"of every class of '{split}'"):
        cifar10(split, per_class)


def test_without_the_archive_a_test_fails_and_says_what_to_set(cifar10, monkeypatch, tmp_path):
    monkeypatch.setenv("PRISMA_STEPS_TEST_DATA", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="set PRISMA_STEPS_TEST_DATA to the folder that holds it"):
        cifar10("test", 1)
