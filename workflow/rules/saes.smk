# Dictionaries: training and judging them.


# Points of a grid that read the same activations are one job, so that it may have all cores.
rule train_sae:
    input:
        missing_inputs,
    output:
        done("train_sae"),
    log:
        f"{RUN}/train_sae/{{key}}.log",
    benchmark:
        f"{RUN}/train_sae/{{key}}.tsv"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=720,
        gpu=1,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule evaluate_sae:
    input:
        missing_inputs,
    output:
        done("evaluate_sae"),
    log:
        f"{RUN}/evaluate_sae/{{key}}.log",
    benchmark:
        f"{RUN}/evaluate_sae/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=1,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


# Reading some gigabytes.
rule load_sae:
    input:
        missing_inputs,
    output:
        done("load_sae"),
    log:
        f"{RUN}/load_sae/{{key}}.log",
    benchmark:
        f"{RUN}/load_sae/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule neuron_basis:
    input:
        missing_inputs,
    output:
        done("neuron_basis"),
    log:
        f"{RUN}/neuron_basis/{{key}}.log",
    benchmark:
        f"{RUN}/neuron_basis/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule encode_latents:
    input:
        missing_inputs,
    output:
        done("encode_latents"),
    log:
        f"{RUN}/encode_latents/{{key}}.log",
    benchmark:
        f"{RUN}/encode_latents/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=1,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


# Reads codes in parallel; on a cluster with DASK_SCHEDULER_ADDRESS set, its workers do.
rule rank_images:
    input:
        missing_inputs,
    output:
        done("rank_images"),
    log:
        f"{RUN}/rank_images/{{key}}.log",
    benchmark:
        f"{RUN}/rank_images/{{key}}.tsv"
    threads: 2
    resources:
        mem_mb=16000,
        runtime=240,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule follow_latents:
    input:
        missing_inputs,
    output:
        done("follow_latents"),
    log:
        f"{RUN}/follow_latents/{{key}}.log",
    benchmark:
        f"{RUN}/follow_latents/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


# Reads two decoders, and holds a few hundred megabytes of their cosines.
rule compare_dictionaries:
    input:
        missing_inputs,
    output:
        done("compare_dictionaries"),
    log:
        f"{RUN}/compare_dictionaries/{{key}}.log",
    benchmark:
        f"{RUN}/compare_dictionaries/{{key}}.tsv"
    threads: 2
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule compare_splicing:
    input:
        missing_inputs,
    output:
        done("compare_splicing"),
    log:
        f"{RUN}/compare_splicing/{{key}}.log",
    benchmark:
        f"{RUN}/compare_splicing/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=1,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"
