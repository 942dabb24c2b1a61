"""The only file that sees Snakemake's ``snakemake`` object: hands its jobs to the runner."""

from pathlib import Path
from typing import Any

from prisma_steps.job_process import main

snakemake: Any = globals()["snakemake"]

main(
    specs_json=snakemake.params.job,
    store_root=snakemake.params.store,
    marker=Path(snakemake.output[0]),
    log=Path(snakemake.log[0]),
    threads=snakemake.threads,
)
