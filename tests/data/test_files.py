from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from prisma_steps.data import files as module
from prisma_steps.data.files import BrokenFile, Files, check, pixel_hash
from prisma_steps.data.image_folder import ImageFile
from prisma_steps.job import Job


@pytest.fixture
def folder(tmp_path):
    """Ten images, the fourth and the eighth broken."""
    names = [f"{number}.png" for number in range(10)]
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    for name in ("3.png", "7.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    return Files(tmp_path, names, ImageFile(4)), pixels.transpose(0, 3, 1, 2)


@pytest.fixture
def job(tmp_path_factory) -> Job:
    return Job(scratch=tmp_path_factory.mktemp("scratch"), checkpoint_every=0)


@pytest.mark.parametrize("threads", [1, 4])
def test_files_are_read_in_the_order_asked_for(folder, threads):
    files, pixels = folder
    index = np.array([9, 0, 5, 0, 2])
    several = Files(files.root, files.names, files.reader, threads)
    np.testing.assert_array_equal(several.read(index), pixels[index])


def test_the_hash_is_the_head_of_the_sha256_of_the_pixels_in_their_order(folder):
    _, pixels = folder
    digest = hashlib.sha256(bytes(pixels[0].flatten().tolist())).hexdigest()
    assert pixel_hash(pixels[0]) == int.from_bytes(bytes.fromhex(digest[:16]), "little")


def test_other_pixels_than_expected_are_refused_by_name(folder):
    files, pixels = folder
    expected = np.array([pixel_hash(image) for image in pixels[:3]], dtype=np.uint64)
    files.read(np.arange(3), expected)
    with pytest.raises(BrokenFile, match=r"^1\.png: its pixels are others"):
        files.read(np.arange(3), expected + np.array([0, 1, 0], dtype=np.uint64))


def test_a_check_tells_whole_files_from_broken_ones(folder, job):
    files, pixels = folder
    index = np.array([7, 1, 3, 0])
    found = check(files, index, job)
    assert found.whole.tolist() == [False, True, False, True]
    assert found.hashes.tolist() == [pixel_hash(pixels[1]), pixel_hash(pixels[0])]
    assert list(found.broken) == ["3.png", "7.png"]
    assert all(reason.startswith(f"{name}: ") for name, reason in found.broken.items())


def test_an_interrupted_check_goes_on_where_it_was(folder, job, monkeypatch):
    files, _ = folder
    monkeypatch.setattr(module, "_BATCH", 2)
    whole = check(files, np.arange(10), Job())
    read, real = [], ImageFile.read

    def interrupted(reader, path):
        if len(read) == 5:
            raise KeyboardInterrupt
        read.append(path.name)
        return real(reader, path)

    monkeypatch.setattr(ImageFile, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check(files, np.arange(10), job)
    monkeypatch.setattr(ImageFile, "read", lambda reader, path: read.append(path.name) or real(reader, path))
    found = check(files, np.arange(10), job)
    assert read[5:] == [f"{number}.png" for number in range(4, 10)]
    assert found.hashes.tolist() == whole.hashes.tolist()
    assert found.whole.tolist() == whole.whole.tolist() and found.broken == whole.broken


def test_progress_is_told(folder, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 4)
    told = []
    check(folder[0], np.arange(10), Job(report=lambda *words: told.append(words)))
    assert told == [(start, 10, "files checked") for start in (0, 4, 8)]
