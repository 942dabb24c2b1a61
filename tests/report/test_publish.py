"""The results folder of an experiment that was really run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest

from prisma_steps.plan import Plan, plan_experiment
from prisma_steps.publish import publish
from prisma_steps.store import Store
from tests.report.test_page import Reader

FIGURES = ("training", "attention", "accuracy", "each--width=one_column", "each--width=two_columns")


@pytest.fixture
def copy(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the experiment once more, to be changed; it becomes the current one."""
    shutil.copytree(published.parents[2], tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return Path()


def again() -> tuple[Plan, str]:
    plan = plan_experiment("small.yaml", Store(Path("artifacts")))
    return plan, publish(plan).read_text(encoding="utf-8")


def article(text: str, number: int) -> str:
    return re.findall(r"<article.*?</article>", text, re.DOTALL)[number - 1]


def links(html: str) -> list[str]:
    return [unquote(attrs["href"] or "") for attrs in Reader(html).all("a")]


def test_files_of_figures_are_copied_and_a_table_has_one_more(small: Plan, published: Path) -> None:
    folder = published.parent / "figures"
    expected = {f"{name}.{ending}" for name in FIGURES for ending in ("png", "pdf", "csv")}
    assert {file.name for file in folder.iterdir()} == expected | {"accuracy.tex"}
    (job,) = small.grids["accuracy"].values()
    artifact = small.store.artifact(job.step, job.key).folder.resolve()
    assert (folder / "accuracy.tex").read_bytes() == (artifact / "table.tex").read_bytes()
    assert "figures/accuracy.tex" in links(article(published.read_text(), 3))
    assert not any(".tex" in link for link in links(article(published.read_text(), 1)))


def test_a_figure_leads_down_to_its_images(small: Plan, published: Path) -> None:
    text = article(published.read_text(), 2)
    (images,) = small.grids["images"].values()
    manifest = small.store.artifact("load_images", images.key).manifest
    shown = " ".join(Reader(text).text.split())
    assert (
        f'images load_images: {images.key}digest {manifest["digest"]} dataset: "digits" n_images: 120'
        in shown
    )
    assert "n_frames" not in shown  # which digits have not
    (deep,) = (job for job in small.grids["vit"].values() if job.point == {"n_layers": 2, "seed": 0})
    assert f"vit train_vit: {deep.key} (n_layers = 2, seed = 0)" in shown
    for target in ("artifacts/images/", "artifacts/vit/n_layers=2--seed=0/", "artifacts/patterns/"):
        assert target in links(text)
        assert (published.parent / target / "manifest.json").is_file()
    assert shown.index("images load_images") < shown.index("vit train_vit") < shown.index("patterns extract")


def test_a_figure_of_a_grid_names_every_artifact(small: Plan, published: Path) -> None:
    text = article(published.read_text(), 1)
    jobs = small.grids["vit"].values()
    assert "4 artifacts" in text and len(jobs) == 4
    for job in jobs:
        assert f"artifacts/vit/n_layers={job.point['n_layers']}--seed={job.point['seed']}/" in links(text)
        assert job.key in text


def test_the_lines_shown_are_those_of_the_figure(published: Path) -> None:
    (lines,) = re.findall(r"<pre.*?</pre>", article(published.read_text(), 2), re.DOTALL)
    shown = Reader(lines).text
    assert shown.startswith(
        "seed: 0\nnodes:\n  # Handwritten digits, of which a few are enough.\n  images: {"
    )
    assert "  # What the deeper one attends to.\n  patterns:\n" in shown
    assert 'caption: "</figcaption><b>x</b>"}' in shown
    assert "training_curves" not in shown and "title" not in shown


def test_what_is_gone_is_said_to_be_missing_and_has_no_link(copy: Path) -> None:
    plan, before = again()
    assert "4 jobs, done" in before
    first, *_ = plan.grids["vit"].values()
    shutil.rmtree(plan.store.artifact("train_vit", first.key).folder)
    _, after = again()
    assert "vit: train_vit, 3 of 4 jobs done" in after
    gone = "artifacts/vit/n_layers=1--seed=0"
    assert f"{gone}/" not in links(article(after, 1)) and f"{first.key}" in article(after, 1)
    assert not (copy / "results/small" / gone).is_symlink()


def test_a_figure_that_is_gone_leaves_a_box_that_leads_to_its_row(copy: Path) -> None:
    plan, _ = again()
    (job,) = plan.grids["attention"].values()
    shutil.rmtree(plan.store.artifact("attention_maps", job.key).folder)
    _, after = again()
    boxes = {attrs.get("aria-label"): attrs["href"] for attrs in Reader(after).all("a")}
    assert (
        boxes["attention: figure: attention_maps, 1 job, missing, made of patterns, images"]
        == "#node-attention"
    )
    assert boxes["accuracy: figure: table, 1 job, done, made of vit"] == "#figure-2"
    assert not (copy / "results/small/figures/attention.png").exists()
