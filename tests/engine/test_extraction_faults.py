"""Extraction in parts, killed wherever it stands, leaves what it leaves undisturbed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Checkout

EXPERIMENT = "experiments/parts.yaml"
NODES = """\
nodes:
  images: {step: load_images, dataset: digits, n_images: 600}
  vit: {step: train_vit, images: images, n_layers: 2, d_model: 16, n_heads: 2, d_mlp: 32, patch_size: 2,
        epochs: 1}
  acts: {step: extract_activations, model: vit, images: images, sites: [resid_post], batch_size: 16, parts: 3}
"""

#: Of 200 images a part, a block is one batch of 16 and a section three: 2 layers × 17 tokens × 16 float32.
SMALL = {
    "prisma_steps/datasets.py": ("SECTION_BYTES = 2**26", f"SECTION_BYTES = {48 * 2 * 17 * 16 * 4}"),
    "prisma_steps/steps/extract_activations.py": ("BLOCK_BYTES = 2**26", "BLOCK_BYTES = 1"),
}

# Python imports a module of this name as it starts. Whatever a job leaves in the store takes its name in one
# move. A job that finds a moment takes it, and dies right before the move that it tells of, or soon after.
SITECUSTOMIZE = """\
import json, os, signal, sys, time, threading
from contextlib import suppress
from pathlib import Path

here = Path(__file__).parent

def take():
    for file in sorted(here.glob("moments/*")):
        with suppress(FileNotFoundError):
            taken = file.rename(here / f"taken-{os.getpid()}")
            return json.loads(taken.read_text())

def die(target):
    with (here / "deaths").open("a") as file:
        print(target, file=file, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def watch(name, moment):
    real = getattr(Path, name)

    def move(self, target):
        if "/artifacts/" in str(Path(target).absolute()) and moment["word"] in str(target):
            moment["count"] -= 1
            if moment["count"] == 0:
                if moment["delay"] == 0:
                    die(target)
                threading.Timer(moment["delay"], die, [target]).start()
        return real(self, target)

    setattr(Path, name, move)

if any(".run_job.py" in word for word in sys.orig_argv) and (moment := take()):
    for name in ("replace", "rename"):
        watch(name, moment)
"""


@dataclass(frozen=True)
class Moment:
    """When a job is killed: at the ``count``-th move to a path with ``word`` in it, or ``delay`` s later."""

    word: str
    count: int
    delay: float = 0.0


@pytest.fixture
def undisturbed(fresh_checkout: Callable[..., Checkout], tmp_path: Path) -> Checkout:
    """A checkout with small sections in which the experiment was run once."""
    checkout = fresh_checkout(tmp_path / "undisturbed")
    for file, change in SMALL.items():
        checkout.edit(file, *change)
    (checkout.folder / "experiments").mkdir()
    (checkout.folder / EXPERIMENT).write_text(NODES)
    run(checkout)
    return checkout


@pytest.fixture
def disturbed(undisturbed: Checkout, tmp_path: Path) -> Checkout:
    """The same before the extraction, with a store of its own, where jobs die when they are told to."""
    checkout = undisturbed.copy(tmp_path / "disturbed")
    shutil.rmtree(checkout.folder / "artifacts")
    for step in ("load_images", "train_vit"):
        shutil.copytree(undisturbed.folder / "artifacts" / step, checkout.folder / "artifacts" / step)
    (checkout.folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return checkout


def run(checkout: Checkout, moments: Sequence[Moment] = ()) -> None:
    """Run all parts at once; each takes one of the moments, of which there are none or one for each."""
    for number, moment in enumerate(moments):
        file = checkout.folder / "moments" / str(number)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(asdict(moment)))
    checkout.command("run", EXPERIMENT, "--cores", "6", code=1 if moments else 0)


def digests(checkout: Checkout) -> dict[str, str]:
    """The digest of every artifact, by step and key."""
    found = (checkout.folder / "artifacts").glob("[!.]*/*/manifest.json")
    return {"/".join(file.parts[-3:-1]): json.loads(file.read_text())["digest"] for file in found}


def test_killed_at_any_moment_and_run_again_the_digests_are_those_of_an_undisturbed_run(
    undisturbed: Checkout, disturbed: Checkout
) -> None:
    dice = random.Random(0)
    # A part moves some 20 files of its template into place; then, five times, a section: two layers and the
    # note that it is there; at last its manifest, itself, and the note of what it is the outcome of.
    within, between = (
        Moment("/resid_post/c/", dice.randrange(1, 9)),
        Moment("blocks.json", dice.randrange(1, 5)),
    )
    run(disturbed, [within, between, Moment("", dice.randrange(1, 35), dice.uniform(0, 0.1))])
    run(
        disturbed, [Moment(word, 1) for word in ("manifest.json", "/extract_activations/", "/.computations/")]
    )
    run(disturbed)
    deaths = (disturbed.folder / "deaths").read_text()
    assert len(deaths.splitlines()) == 6
    assert all(
        word in deaths for word in ("/resid_post/c/", "blocks.json", "manifest.json", "/.computations/")
    )
    assert len(digests(undisturbed)) == 5
    assert digests(disturbed) == digests(undisturbed)
