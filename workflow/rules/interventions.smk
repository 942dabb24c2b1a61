# What happens when activations are changed, and what they say.


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


rule logit_lens:
    input:
        missing_inputs,
    output:
        done("logit_lens"),
    log:
        f"{RUN}/logit_lens/{{key}}.log",
    benchmark:
        f"{RUN}/logit_lens/{{key}}.tsv"
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


rule attribute_logits:
    input:
        missing_inputs,
    output:
        done("attribute_logits"),
    log:
        f"{RUN}/attribute_logits/{{key}}.log",
    benchmark:
        f"{RUN}/attribute_logits/{{key}}.tsv"
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


rule describe_attention:
    input:
        missing_inputs,
    output:
        done("describe_attention"),
    log:
        f"{RUN}/describe_attention/{{key}}.log",
    benchmark:
        f"{RUN}/describe_attention/{{key}}.tsv"
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
