# Images into the store.


rule load_images:
    input:
        missing_inputs,
    output:
        done("load_images"),
    log:
        f"{RUN}/load_images/{{key}}.log",
    benchmark:
        f"{RUN}/load_images/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"
