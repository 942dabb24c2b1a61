# What happens when activations are changed.


rule pair_images:
    input:
        missing_inputs,
    output:
        done("pair_images"),
    log:
        f"{RUN}/pair_images/{{key}}.log",
    benchmark:
        f"{RUN}/pair_images/{{key}}.tsv"
    threads: 2
    resources:
        mem_mb=8000,
        runtime=60,
        gpu=1,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


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


rule trace_circuit:
    input:
        missing_inputs,
    output:
        done("trace_circuit"),
    log:
        f"{RUN}/trace_circuit/{{key}}.log",
    benchmark:
        f"{RUN}/trace_circuit/{{key}}.tsv"
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


rule trace_latents:
    input:
        missing_inputs,
    output:
        done("trace_latents"),
    log:
        f"{RUN}/trace_latents/{{key}}.log",
    benchmark:
        f"{RUN}/trace_latents/{{key}}.tsv"
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
