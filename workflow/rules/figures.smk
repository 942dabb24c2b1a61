# Figures. They select from what was computed and never compute, so they are cheap.


rule training_curves:
    input:
        missing_inputs,
    output:
        done("training_curves"),
    log:
        f"{RUN}/training_curves/{{key}}.log",
    benchmark:
        f"{RUN}/training_curves/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule attention_maps:
    input:
        missing_inputs,
    output:
        done("attention_maps"),
    log:
        f"{RUN}/attention_maps/{{key}}.log",
    benchmark:
        f"{RUN}/attention_maps/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule sae_pareto:
    input:
        missing_inputs,
    output:
        done("sae_pareto"),
    log:
        f"{RUN}/sae_pareto/{{key}}.log",
    benchmark:
        f"{RUN}/sae_pareto/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule sae_l0_by_layer:
    input:
        missing_inputs,
    output:
        done("sae_l0_by_layer"),
    log:
        f"{RUN}/sae_l0_by_layer/{{key}}.log",
    benchmark:
        f"{RUN}/sae_l0_by_layer/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule patching_heatmap:
    input:
        missing_inputs,
    output:
        done("patching_heatmap"),
    log:
        f"{RUN}/patching_heatmap/{{key}}.log",
    benchmark:
        f"{RUN}/patching_heatmap/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule latents_vs_neurons:
    input:
        missing_inputs,
    output:
        done("latents_vs_neurons"),
    log:
        f"{RUN}/latents_vs_neurons/{{key}}.log",
    benchmark:
        f"{RUN}/latents_vs_neurons/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule lens_heatmap:
    input:
        missing_inputs,
    output:
        done("lens_heatmap"),
    log:
        f"{RUN}/lens_heatmap/{{key}}.log",
    benchmark:
        f"{RUN}/lens_heatmap/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule lens_maps:
    input:
        missing_inputs,
    output:
        done("lens_maps"),
    log:
        f"{RUN}/lens_maps/{{key}}.log",
    benchmark:
        f"{RUN}/lens_maps/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule attribution_bars:
    input:
        missing_inputs,
    output:
        done("attribution_bars"),
    log:
        f"{RUN}/attribution_bars/{{key}}.log",
    benchmark:
        f"{RUN}/attribution_bars/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule attention_by_layer:
    input:
        missing_inputs,
    output:
        done("attention_by_layer"),
    log:
        f"{RUN}/attention_by_layer/{{key}}.log",
    benchmark:
        f"{RUN}/attention_by_layer/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule head_types:
    input:
        missing_inputs,
    output:
        done("head_types"),
    log:
        f"{RUN}/head_types/{{key}}.log",
    benchmark:
        f"{RUN}/head_types/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule steering_curves:
    input:
        missing_inputs,
    output:
        done("steering_curves"),
    log:
        f"{RUN}/steering_curves/{{key}}.log",
    benchmark:
        f"{RUN}/steering_curves/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule ablation_bars:
    input:
        missing_inputs,
    output:
        done("ablation_bars"),
    log:
        f"{RUN}/ablation_bars/{{key}}.log",
    benchmark:
        f"{RUN}/ablation_bars/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule ablation_heatmap:
    input:
        missing_inputs,
    output:
        done("ablation_heatmap"),
    log:
        f"{RUN}/ablation_heatmap/{{key}}.log",
    benchmark:
        f"{RUN}/ablation_heatmap/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule rollout_maps:
    input:
        missing_inputs,
    output:
        done("rollout_maps"),
    log:
        f"{RUN}/rollout_maps/{{key}}.log",
    benchmark:
        f"{RUN}/rollout_maps/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule metric_by_axis:
    input:
        missing_inputs,
    output:
        done("metric_by_axis"),
    log:
        f"{RUN}/metric_by_axis/{{key}}.log",
    benchmark:
        f"{RUN}/metric_by_axis/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule table:
    input:
        missing_inputs,
    output:
        done("table"),
    log:
        f"{RUN}/table/{{key}}.log",
    benchmark:
        f"{RUN}/table/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule circuit_graph:
    input:
        missing_inputs,
    output:
        done("circuit_graph"),
    log:
        f"{RUN}/circuit_graph/{{key}}.log",
    benchmark:
        f"{RUN}/circuit_graph/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule faithfulness_curve:
    input:
        missing_inputs,
    output:
        done("faithfulness_curve"),
    log:
        f"{RUN}/faithfulness_curve/{{key}}.log",
    benchmark:
        f"{RUN}/faithfulness_curve/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule latent_faithfulness_curve:
    input:
        missing_inputs,
    output:
        done("latent_faithfulness_curve"),
    log:
        f"{RUN}/latent_faithfulness_curve/{{key}}.log",
    benchmark:
        f"{RUN}/latent_faithfulness_curve/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule firing_frequencies:
    input:
        missing_inputs,
    output:
        done("firing_frequencies"),
    log:
        f"{RUN}/firing_frequencies/{{key}}.log",
    benchmark:
        f"{RUN}/firing_frequencies/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule latent_states:
    input:
        missing_inputs,
    output:
        done("latent_states"),
    log:
        f"{RUN}/latent_states/{{key}}.log",
    benchmark:
        f"{RUN}/latent_states/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule sae_training_curves:
    input:
        missing_inputs,
    output:
        done("sae_training_curves"),
    log:
        f"{RUN}/sae_training_curves/{{key}}.log",
    benchmark:
        f"{RUN}/sae_training_curves/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule splicing:
    input:
        missing_inputs,
    output:
        done("splicing"),
    log:
        f"{RUN}/splicing/{{key}}.log",
    benchmark:
        f"{RUN}/splicing/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule top_images:
    input:
        missing_inputs,
    output:
        done("top_images"),
    log:
        f"{RUN}/top_images/{{key}}.log",
    benchmark:
        f"{RUN}/top_images/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule latents_over_time:
    input:
        missing_inputs,
    output:
        done("latents_over_time"),
    log:
        f"{RUN}/latents_over_time/{{key}}.log",
    benchmark:
        f"{RUN}/latents_over_time/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"


rule decoder_similarity:
    input:
        missing_inputs,
    output:
        done("decoder_similarity"),
    log:
        f"{RUN}/decoder_similarity/{{key}}.log",
    benchmark:
        f"{RUN}/decoder_similarity/{{key}}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=job_spec,
        store=str(PLAN.store.root),
    script:
        "../scripts/run_job.py"
