"""Which jobs are computed together: points of a grid that read the same and differ only in what may differ.

A company is no part of what a job is: it enters no key, and each of its members has an artifact of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prisma_steps.fingerprint import canonical
from prisma_steps.step import Step

if TYPE_CHECKING:
    from prisma_steps.plan import JobPlan

#: Members of a company at most: they are in memory together, and a grid is to fill more than one machine.
MOST = 16

Company = tuple[str, ...]


def companies(jobs: Mapping[str, JobPlan], steps: Mapping[str, Step]) -> dict[str, Company]:
    """The company of every job, by key.

    What is in the store plays no part: every process of a run, on another machine and later too, must come
    to the same companies, of which it then leaves out what is there.

    Args:
        jobs: jobs by key.
        steps: the step of each node.

    Returns:
        Keys of the jobs that may be computed together, in the order of the plan, by the key of each.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for key, job in jobs.items():
        alike[_in_common(job, steps[job.node])].append(key)
    found: dict[str, Company] = {}
    for keys in alike.values():
        for start in range(0, len(keys), MOST):
            company = tuple(keys[start : start + MOST])
            found.update(dict.fromkeys(company, company))
    return found


def _in_common(job: JobPlan, step: Step) -> str:
    """What the members of a company have in common; a job that can have no company has it for itself.

    Parameters are compared as the step gets them: also those that do not enter the key must be the same.
    """
    if step.together is None:
        return job.key
    parameters = {name: value for name, value in job.parameters.items() if name not in step.may_differ}
    return canonical([step.name, job.identity["inputs"], parameters])
