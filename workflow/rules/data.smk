# Images into the store.


# One thread, which is all that drawing takes. For a large folder, whose files are decoded side by side:
# prisma-steps run EXPERIMENT -- --set-threads load_images=8
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
        runtime=480,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"
