# Models, trained here or elsewhere, and heads for those that come without one.


# One thread: small models run side by side, which is faster than one after the other on several threads. For a
# large one on a CPU: prisma-steps run EXPERIMENT -- --set-threads train_vit=8
rule train_vit:
    input:
        missing_inputs,
    output:
        done("train_vit"),
    log:
        f"{RUN}/train_vit/{{key}}.log",
    benchmark:
        f"{RUN}/train_vit/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=720,
        gpu=1,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule select_checkpoint:
    input:
        missing_inputs,
    output:
        done("select_checkpoint"),
    log:
        f"{RUN}/select_checkpoint/{{key}}.log",
    benchmark:
        f"{RUN}/select_checkpoint/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule train_probe:
    input:
        missing_inputs,
    output:
        done("train_probe"),
    log:
        f"{RUN}/train_probe/{{key}}.log",
    benchmark:
        f"{RUN}/train_probe/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=16000,
        runtime=480,
        gpu=1,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


# Reading and writing some gigabytes; templates of a zero-shot classifier run the text tower.
rule load_model:
    input:
        missing_inputs,
    output:
        done("load_model"),
    log:
        f"{RUN}/load_model/{{key}}.log",
    benchmark:
        f"{RUN}/load_model/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=16000,
        runtime=120,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"
