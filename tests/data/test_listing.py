from __future__ import annotations

import os

import pytest

from prisma_steps.data.listing import walk


def test_every_file_is_listed_with_its_path_and_nothing_hidden(tmp_path):
    for name in ("a.png", "b/c.png", "b/d/e.txt", ".hidden", "b/.cache/x.png", "empty/.keep"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = dict(walk(tmp_path))
    assert found.keys() == {"a.png", "b/c.png", "b/d/e.txt"}
    assert all(os.path.samefile(entry.path, tmp_path / name) for name, entry in found.items())


def test_links_are_listed_and_not_followed(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.png").touch()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert dict(walk(tmp_path)).keys() == {"b/a.png", "link", "gone"}


def test_a_folder_that_may_not_be_read_is_not_passed_over_in_silence(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        list(walk(tmp_path))
