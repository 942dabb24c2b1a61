"""The quickstart under fire: killed at random moments and run again, it must leave what it always leaves.

``python -m benchmarks.faults --kills 30 --seed 0`` runs it twice, the second time killing processes of it
(SIGKILL: jobs, Snakemake, the command), and prints every kill and a verdict.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from itertools import islice
from pathlib import Path

from tests.engine.fault_session import ROOT, Disturbance, Kill, Study, costs, leaving_nobody, watched

EXPERIMENT = ROOT / "experiments" / "quickstart.yaml"


def main() -> int:
    """Run the quickstart undisturbed, then disturbed; 0 when both leave the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        calm = _study(Path(name) / "calm")
        calm.finish()
        print(f"undisturbed: {len(calm.digests())} artifacts in {time.monotonic() - began:.0f} s", flush=True)
        count = 0
        dice = random.Random(asked.seed)
        for turn in range(asked.kills):
            with leaving_nobody(_study(Path(name) / f"disturbed-{turn}")) as study:
                count += _disturb(study, calm, dice, asked.kills, count)
                wrong = {key for key, digest in calm.digests().items() if study.digests().get(key) != digest}
            if wrong or study.digests().keys() != calm.digests().keys() or study.held_locks():
                print(
                    f"FAILED: {', '.join(sorted(wrong)) or 'too many artifacts, or locks held'}", flush=True
                )
                return 1
            if count >= asked.kills:
                break
    print(f"{count} kills: every artifact whole whenever it was seen, all final digests the same", flush=True)
    return 0


def _study(folder: Path) -> Study:
    folder.mkdir()
    return Study(folder.resolve(), "quickstart").write(EXPERIMENT.read_text(encoding="utf-8"))


def _disturb(study: Study, calm: Study, dice: random.Random, wanted: int, before: int) -> int:
    """Run to the end in spite of kills; how many there were."""
    spare = 3  # moments that come when all is done already
    shares = [0.0, *(dice.uniform(0.0, 0.95) for _ in range(wanted - before - 1 + spare))]
    count = 0
    began = time.monotonic()
    with watched(study.root, study.folder / "watched"):
        for kill in islice(Disturbance(study, costs(calm), dice).kills(shares), wanted - before):
            count += 1
            _print(before + count, kill)
        answer = study.finish()
        study.alone(600)
    left = sum(job["state"] == "computed" for job in answer["jobs"])
    print(f"last run: {left} computed, rest there; {time.monotonic() - began:.0f} s in all", flush=True)
    return count


def _print(number: int, kill: Kill) -> None:
    if number == 1:
        print(f"{'':>3} {'after':>6}  {'done':>4}  {'killed':<10} {'the run then':<17} jobs under way")
    when = f"{number:>3} {kill.seconds:>4.0f} s  {kill.share:>4.0%}"
    print(f"{when}  {kill.victim:<10} {kill.after:<17} {kill.doing}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
