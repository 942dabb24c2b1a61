"""The only file that sees Snakemake's ``snakemake`` object: hands a job to the runner."""

from pathlib import Path
from typing import Any

from prisma_steps.runner import main

snakemake: Any = globals()["snakemake"]

main(
    spec_json=snakemake.params.job,
    store_root=snakemake.params.store,
    marker=Path(snakemake.output[0]),
    log=Path(snakemake.log[0]),
    status_file=Path(snakemake.output[0]).with_suffix(".json"),
    threads=snakemake.threads,
)
