"""Real runs of the real command, to be disturbed; and a watcher that looks at the store all the while."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
COMMAND = "from prisma_steps.cli import main; main()"

#: Who can be killed: processes whose command line holds the word.
ROLES = {"job": ".run_job.py", "Snakemake": "snakemake", "command": COMMAND}

#: Seconds that a job costs besides its step: starting Python, importing torch.
START_UP = 4.0


@dataclass(frozen=True)
class Study:
    """A folder with experiments in which the command is run.

    Attributes:
        store: where artifacts lie; ``artifacts`` in the folder if None.
        code: the folder whose package and workflow are run.
    """

    folder: Path
    name: str
    store: Path | None = None
    code: Path = ROOT

    @property
    def root(self) -> Path:
        """The store."""
        return self.store or self.folder / "artifacts"

    def write(self, text: str) -> Study:
        """Write the experiment file."""
        file = self.folder / "experiments" / f"{self.name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return self

    def words(self, *arguments: str) -> list[str]:
        """A command line."""
        return [sys.executable, "-c", COMMAND, *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PRISMA_STEPS")}
        own = {"PYTHONPATH": str(self.code), "PRISMA_STEPS_STORE": str(self.root)}
        return inherited | own

    def start(self, *options: str, **popen: Any) -> Going:
        """Start ``run``; what it prints goes to files."""
        said = self.folder / f"said-{self.name}-{time.monotonic_ns()}"
        with said.with_suffix(".out").open("wb") as out, said.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                self.words("run", self.name, "--json", "--cores", "2", *options),
                cwd=self.folder,
                env=self.environment,
                **{"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, "start_new_session": True}
                | popen,
            )
        return Going(self, process, said)

    def finish(self) -> dict[str, Any]:
        """Run to the end, which must be reached; the answer."""
        going = self.start()
        code = going.process.wait(600)
        assert code == 0, f"exit code {code}\n{going.told()}\n{self.logs()}"
        return going.answer()

    def digests(self) -> dict[str, str]:
        """The digest of every artifact in the store, by step and key."""
        found = self.root.glob("[!.]*/*/manifest.json")
        return {f"{file.parent.parent.name}/{file.parent.name}": _json(file)["digest"] for file in found}

    def statuses(self) -> list[dict[str, Any]]:
        """The latest words of all jobs of all runs, with their ``key``."""
        found = []
        for file in self.folder.glob("results/*/.runs/*/*/*.json"):
            with suppress(FileNotFoundError, json.JSONDecodeError):
                found.append({**_json(file), "key": file.stem, "run": file.parts[-3]})
        return found

    def logs(self) -> str:
        """The end of every log of every run."""
        files = sorted(self.folder.glob("results/*/.runs/**/*.log"))
        return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Who works in the folder, by role: of this run and orphans of earlier ones."""
        found: dict[str, list[psutil.Process]] = {role: [] for role in ROLES}
        for process in psutil.process_iter():
            with suppress(psutil.Error, FileNotFoundError):
                if process.cwd() != str(self.folder) or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                line = " ".join(process.cmdline())
                role = next((role for role, word in ROLES.items() if word in line), None)
                if role is not None:
                    found[role].append(process)
        return found

    def alone(self, patience: float = 120.0) -> None:
        """Wait until nobody works in the folder any more."""
        wait_for(lambda: not any(self.processes().values()), "orphans to end", patience)

    def held_locks(self) -> list[Path]:
        """Locks of the store whose owner is alive."""
        held = []
        for file in self.root.glob(".locks/*"):
            with suppress(FileNotFoundError, json.JSONDecodeError):  # let go, or taken, just now
                if psutil.pid_exists(_json(file)["pid"]):
                    held.append(file)
        return held


@dataclass(frozen=True)
class Going:
    """A command that was started."""

    study: Study
    process: subprocess.Popen[bytes]
    said: Path

    def answer(self) -> dict[str, Any]:
        """What it printed, as JSON."""
        return _json(self.said.with_suffix(".out"))

    def told(self) -> str:
        """All that it printed."""
        return "".join(self.said.with_suffix(end).read_text(encoding="utf-8") for end in (".out", ".err"))

    def states(self) -> dict[str, str]:
        """The state of every job, by key."""
        return {job["key"]: job["state"] for job in self.answer()["jobs"]}


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def wait_for(condition: Callable[[], Any], what: str, patience: float = 120.0) -> Any:
    """Wait until ``condition`` returns something true, and return that."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {patience:g} s for {what}")


@contextmanager
def leaving_nobody(study: Study) -> Iterator[Study]:
    """Kill whoever still works in the study's folder at the end."""
    try:
        yield study
    finally:
        for processes in study.processes().values():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


# --- killing at random moments


@dataclass(frozen=True)
class Kill:
    """What was killed, when, and what became of the run.

    Attributes:
        share: of the experiment's work that was done.
        doing: steps of the jobs that were being done.
    """

    seconds: float
    share: float
    victim: str
    doing: str
    after: str


@dataclass
class Disturbance:
    """Runs of one study, again and again, killed at given shares of its work.

    Attributes:
        weights: seconds that each artifact costs, by step and key.
    """

    study: Study
    weights: Mapping[str, float]
    dice: random.Random
    began: float = field(default_factory=time.monotonic)

    def share(self) -> float:
        """How much of the work is done, by what it costs."""
        done = dict.fromkeys(self.study.digests(), 1.0)
        for status in self.study.statuses():
            key = next((name for name in self.weights if name.endswith(status["key"])), None)
            if key is not None and key not in done and status["total"] and status["state"] == "running":
                done[key] = status["done"] / status["total"]
        total = sum(self.weights.values())
        return sum(self.weights[key] * part for key, part in done.items()) / total

    def kills(self, shares: list[float]) -> Iterator[Kill]:
        """Kill somebody at each of these shares of the work, or a little later; ends when all is done."""
        going = None
        for share in sorted(shares):
            if going is None or going.process.poll() is not None:
                going = self.study.start()
            wait_for(lambda s=share, g=going: self.share() >= s or g.process.poll() is not None, "work", 900)
            time.sleep(self.dice.uniform(0.0, 3.0))
            if self.share() >= 1.0:
                break
            kill = self._kill(going)
            if kill is not None:
                yield kill
        if going is not None:
            going.process.wait(900)

    def _kill(self, going: Going) -> Kill | None:
        there = {role: found for role, found in self.study.processes().items() if found}
        if not there:
            return None
        role = self.dice.choice(sorted(there))
        victim = self.dice.choice(there[role])
        working = {lock.name for lock in self.study.held_locks()}
        steps = sorted(
            {step for step, _, key in (name.partition("/") for name in self.weights) if key in working}
        )
        share = self.share()
        with suppress(psutil.NoSuchProcess):
            victim.kill()
        return Kill(time.monotonic() - self.began, share, role, ", ".join(steps), _became(going))


def _became(going: Going) -> str:
    """What became of a run of which a process was killed, once that shows."""
    with suppress(subprocess.TimeoutExpired):
        code = going.process.wait(5)
        return f"exit {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
    return "went on"


def costs(study: Study) -> dict[str, float]:
    """Seconds that each artifact of a finished study costs, by step and key."""
    return {
        name: _json(study.root / name / "manifest.json")["seconds"] + START_UP for name in study.digests()
    }


# --- watching the store


@contextmanager
def watched(store: Path, report: Path) -> Iterator[None]:
    """Have another process scan the store all the while; it must never see less than whole artifacts."""
    watcher = subprocess.Popen([sys.executable, __file__, str(store), str(report)])
    try:
        wait_for(report.exists, "the watcher")
        yield
    finally:
        watcher.terminate()
        watcher.wait(60)
    scans, *wrong = report.read_text(encoding="utf-8").splitlines()
    assert watcher.returncode == 0, "the watcher itself failed"
    assert int(scans) > 3, "the watcher hardly looked"
    assert not wrong, "\n".join(wrong)


def watch(store: Path, report: Path) -> None:
    """Scan ``store`` until SIGTERM; write the number of scans and all that was ever wrong to ``report``."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda sign, _frame: asked.append(sign))
    wrong: dict[str, None] = {}
    seen: dict[Path, list[tuple[str, int, int]]] = {}
    scans = 0
    report.touch()
    while not asked or scans == 0:
        for folder in store.glob("[!.]*/*"):
            wrong.update(dict.fromkeys(_wrong(folder, seen)))
        scans += 1
        time.sleep(0.05)
    for folder in store.glob("[!.]*/*"):
        wrong.update(dict.fromkeys(_wrong(folder, {})))
    report.write_text("\n".join([str(scans), *wrong]), encoding="utf-8")


def _wrong(folder: Path, seen: dict[Path, list[tuple[str, int, int]]]) -> Iterator[str]:
    """What is wrong with an artifact; one that is as it was seen before is not read again."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        yield f"{folder} is there without a manifest"
        return
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    if seen.get(folder) == stats:
        return
    expected = {name: entry["sha256"] for name, entry in _json(manifest)["files"].items()}
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path != manifest
    }
    if found != expected:
        yield f"{folder} holds other files than its manifest names"
    seen[folder] = stats


if __name__ == "__main__":
    watch(Path(sys.argv[1]), Path(sys.argv[2]))
