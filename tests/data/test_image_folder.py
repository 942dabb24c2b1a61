from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from prisma_steps.data import image_folder
from prisma_steps.step import StepError


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    for name, value in [("cat/b.png", 10), ("cat/a.png", 20), ("ant/z.png", 30), ("ant/deep/y.png", 40)]:
        save(tmp_path / name, np.full((6, 6, 3), value))
    return tmp_path


def read(folder, size=4):
    source = image_folder.source(str(folder), size)
    every = np.arange(source.count)
    return source, source.coords(every), source.pixels(every)


def test_ids_are_sorted_paths_and_classes_are_the_first_folders(folder):
    source, coords, pixels = read(folder)
    assert coords["image"].tolist() == ["ant/deep/y.png", "ant/z.png", "cat/a.png", "cat/b.png"]
    assert source.class_names == ("ant", "cat")
    assert coords["label"].tolist() == [0, 0, 1, 1]
    assert pixels[:, 0, 0, 0].tolist() == [40, 30, 20, 10]
    assert pixels.shape == (4, 3, 4, 4) and pixels.dtype == np.uint8


def test_images_in_the_folder_itself_have_no_classes(tmp_path):
    save(tmp_path / "one.png", np.zeros((4, 4)))
    source, coords, _ = read(tmp_path)
    assert source.class_names is None and set(coords) == {"image"}


def test_images_beside_class_folders_are_refused(folder):
    save(folder / "stray.png", np.zeros((4, 4)))
    with pytest.raises(StepError, match=r"1 of 5 images lie beside the class folders \('stray.png'\)"):
        read(folder)


def test_the_middle_square_is_kept(tmp_path):
    pixels = np.zeros((4, 8, 3))
    pixels[:, 2:6] = 200
    save(tmp_path / "wide.png", pixels)
    save(tmp_path / "tall.png", pixels.transpose(1, 0, 2))
    assert (read(tmp_path)[2] == 200).all()


def test_colours_and_rows_keep_their_places(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    save(tmp_path / "image.png", pixels)
    np.testing.assert_array_equal(read(tmp_path)[2][0], pixels.transpose(2, 0, 1))


def test_images_are_turned_upright(tmp_path):
    pixels = np.zeros((16, 16, 3))
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    save(tmp_path / "photo.png", pixels, exif=exif)
    upright = read(tmp_path, 16)[2][0]
    assert (upright[:, 8:] == 255).all() and (upright[:, :8] == 0).all()


def test_every_broken_file_is_named_with_its_reason_and_no_host_path(folder):
    (folder / "cat" / "notes.txt").write_text("not an image")
    whole = (folder / "ant" / "z.png").read_bytes()
    (folder / "ant" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(folder / "cat" / "wide.png")
    source = image_folder.source(str(folder), 4)
    first_broken = [str(name) for name in source.coords(np.arange(7))["image"]].index("ant/cut.png")
    with pytest.raises(StepError) as caught:
        source.pixels(np.array([first_broken]))
    message = str(caught.value)
    assert "3 of 7 files" in message
    assert "  cat/notes.txt: not an image file" in message
    assert "  ant/cut.png: " in message and "  cat/wide.png: I;16 pixels" in message
    assert str(folder) not in message


def test_hidden_files_are_passed_over(folder):
    (folder / ".DS_Store").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.png").write_text("x")
    assert read(folder)[0].count == 4


@pytest.mark.parametrize("make", [lambda _: None, lambda path: path.mkdir()], ids=["missing", "empty"])
def test_missing_and_empty_folders_are_refused(tmp_path, make):
    make(tmp_path / "images")
    with pytest.raises(StepError, match="image_folder"):
        image_folder.source(str(tmp_path / "images"), 4)


def test_links_out_of_the_folder_are_refused_and_links_inside_are_read(folder, tmp_path_factory):
    (folder / "cat" / "link.png").symlink_to(folder / "ant" / "z.png")
    assert read(folder)[0].count == 5
    outside = tmp_path_factory.mktemp("outside")
    save(outside / "x.png", np.zeros((4, 4)))
    (folder / "cat" / "away.png").symlink_to(outside / "x.png")
    (folder / "dog").symlink_to(outside)
    with pytest.raises(StepError, match=r"lead out of the folder: cat/away.png, dog\."):
        read(folder)
