"""What the engine costs: nothing to do, planning, a linked job; and that cold runs agree."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import command, interleaved, report
from prisma_steps.plan import Plan, plan_experiment
from prisma_steps.session import workflow_folder
from prisma_steps.store import MANIFEST, Store

_NODES = """
  sprites: {step: load_images, dataset: dsprites, n_images: 600}
  vit: {step: train_vit, images: sprites, n_layers: 1, d_model: 16, n_heads: 2, patch_size: 32, epochs: 1}
  acts: {step: extract_activations, model: vit, images: sprites, sites: [resid_post], layers: last}
"""


def benchmark() -> bool:
    """Run all; False when a limit is missed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "experiments").mkdir()
        passed = [nothing_to_do(folder), planning(folder), linked_job(folder), same_digests(folder)]
    return all(passed)


def nothing_to_do(folder: Path) -> bool:
    """A run with nothing to do on a 3,000-job experiment, beside Snakemake on an empty Snakefile."""
    grid = ", ".join(f"{0.001 * number:.6g}" for number in range(1, 101))
    seeds = ", ".join(map(str, range(15)))
    plan = _plan(
        folder,
        "three_thousand",
        f"{_NODES}"
        "  sae: {step: train_sae, activations: acts, architecture: relu, "
        f"l1_coefficient: {{grid: [{grid}]}}, seed: {{grid: [{seeds}]}}}}\n"
        "  quality: {step: evaluate_sae, sae: sae, model: vit, images: sprites}\n",
    )
    _pretend_made(plan)
    (folder / "empty").mkdir()
    (folder / "empty" / "Snakefile").write_text("rule all:\n    input: []\n")
    snakemake = [sys.executable, "-m", "snakemake", "--cores", "1"]
    workflow = ["--snakefile", str(workflow_folder() / "Snakefile")]
    profile = ["--workflow-profile", str(workflow_folder() / "profiles" / "default")]
    config = ["--config", f"experiment={plan.experiment.file}"]
    times = interleaved(
        {
            "empty": command(snakemake, folder / "empty", os.environ),
            "command": command(_ours("run", plan.experiment.file), folder, os.environ),
            "snakemake": command([*snakemake, *profile, *workflow, *config], folder, os.environ),
        },
        rounds=5,
    )
    what = f"nothing to do, {len(plan.jobs):,} jobs"
    return all(
        [
            report(f"{what}: prisma-steps run / empty Snakefile", times["command"], times["empty"], 2),
            report(f"{what}: plain snakemake / empty Snakefile", times["snakemake"], times["empty"], 2),
        ]
    )


def planning(folder: Path) -> bool:
    """Planning 10,000 jobs, in a fresh process."""
    seeds = ", ".join(map(str, range(9997)))
    sae = f"  sae: {{step: train_sae, activations: acts, seed: {{grid: [{seeds}]}}}}\n"
    plan = _plan(folder, "ten_thousand", _NODES + sae)
    code = (
        f"from prisma_steps.plan import plan_experiment; plan_experiment({plan.experiment.file!r}).missing()"
    )
    times = interleaved({"plan": command([sys.executable, "-c", code], folder, os.environ)}, rounds=5)
    return report(f"planning {len(plan.jobs):,} jobs, from a cold start / 1 s", times["plan"], 1.0, 3)


def linked_job(folder: Path) -> bool:
    """A job whose outcome is linked, as a process of its own, beside importing xarray and zarr."""
    nodes = "  sprites: {step: load_images, dataset: dsprites, n_images: 2000}\n"
    plan = _plan(folder, "linked", nodes)
    command(_ours("run", plan.experiment.file), folder, os.environ)()
    (job,) = plan.jobs.values()
    turn = iter(range(10_000))

    def link() -> None:
        spec = job.spec("linked") | {"key": f"{next(turn):016x}"}
        code = (
            "from pathlib import Path; from prisma_steps.job_process import main; "
            f"main({json.dumps([spec])!r}, 'artifacts', Path('m.done'), Path('m.log'), 1)"
        )
        command([sys.executable, "-c", code], folder, os.environ)()
        state = json.loads((folder / f"{spec['key']}.json").read_text())["state"]
        if state != "linked":
            raise RuntimeError(f"the job was {state}, not linked")

    imports = command([sys.executable, "-c", "import xarray, zarr"], folder, os.environ)
    times = interleaved({"link": link, "imports": imports}, rounds=9)
    return report("a linked job / python -c 'import xarray, zarr'", times["link"], times["imports"], 1.5)


def same_digests(folder: Path) -> bool:
    """The artifacts of two cold runs have the same digests."""
    nodes = _NODES + "  sae: {step: train_sae, activations: acts, epochs: 1}\n"
    plan = _plan(folder, "cold", nodes)
    digests = []
    for store in ("first", "second"):
        began = time.perf_counter()
        environment = os.environ | {"PRISMA_STEPS_STORE": store}
        command(_ours("run", plan.experiment.file), folder, environment)()
        made = {key: Store(folder / store).artifact(job.step, key) for key, job in plan.jobs.items()}
        digests.append({key: artifact.manifest["digest"] for key, artifact in made.items()})
        print(f"cold run into {store!r}: {time.perf_counter() - began:.1f} s", flush=True)
    same = sum(digests[0][key] == digests[1][key] for key in plan.jobs)
    print(f"two cold runs: {same} of {len(plan.jobs)} artifacts have the same digest", flush=True)
    return same == len(plan.jobs)


def _plan(folder: Path, name: str, nodes: str) -> Plan:
    file = folder / "experiments" / f"{name}.yaml"
    file.write_text(f"title: {name}\nnodes:\n{nodes.lstrip(chr(10))}")
    return plan_experiment(file, Store(folder / "artifacts"))


def _pretend_made(plan: Plan) -> None:
    """Manifests with a time only: a run with nothing to do reads no more than that they are there."""
    for job in plan.jobs.values():
        artifact = plan.store.artifact(job.step, job.key)
        artifact.folder.mkdir(parents=True)
        (artifact.folder / MANIFEST).write_text('{"seconds": 1.0}')


def _ours(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("prisma-steps")), *words]
