# What happens when activations are changed.


rule patch_activations:
    input:
        missing_inputs,
    output:
        done("patch_activations"),
    log:
        f"{RUN}/patch_activations/{{key}}.log",
    benchmark:
        f"{RUN}/patch_activations/{{key}}.tsv"
    threads: 2
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=1,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule ablate_activations:
    input:
        missing_inputs,
    output:
        done("ablate_activations"),
    log:
        f"{RUN}/ablate_activations/{{key}}.log",
    benchmark:
        f"{RUN}/ablate_activations/{{key}}.tsv"
    threads: 2
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=1,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule steer_latents:
    input:
        missing_inputs,
    output:
        done("steer_latents"),
    log:
        f"{RUN}/steer_latents/{{key}}.log",
    benchmark:
        f"{RUN}/steer_latents/{{key}}.tsv"
    threads: 2
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=1,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"
