# What models compute inside, written down.


rule extract_activations:
    input:
        missing_inputs,
    output:
        done("extract_activations"),
    log:
        f"{RUN}/extract_activations/{{key}}.log",
    benchmark:
        f"{RUN}/extract_activations/{{key}}.tsv"
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
