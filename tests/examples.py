"""What every figure is drawn from in tests: examples of the kinds of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import xarray as xr

from prisma_steps import schema
from prisma_steps.figures.style import Plot, house_style
from prisma_steps.job import Job
from prisma_steps.step import Artifact, Output, Step, StepParams


class Case(NamedTuple):
    """One way to draw a figure.

    Attributes:
        params: parameters that are not left at their defaults.
        example: how the examples of its inputs are made (``schema.example``).
        slots: inputs that are made otherwise, by name.
    """

    params: Mapping[str, Any] = {}
    example: Mapping[str, Any] = {}
    slots: Mapping[str, Callable[[], xr.Dataset]] = {}


def grid(kind: schema.Kind, **axes: list[Any]) -> xr.Dataset:
    """Examples of a kind along the axes of a grid, as a gathered input has them, no two alike."""
    count = iter(range(1000))

    def along(left: list[str]) -> xr.Dataset:
        if not left:
            return schema.example(kind, next(count))
        parts = [along(left[1:]).expand_dims({left[0]: [value]}) for value in axes[left[0]]]
        # What depends on no point of the grid (an epoch, the names of the classes) stays as it is.
        return xr.concat(parts, left[0], data_vars="minimal", coords="minimal", compat="override")

    return along([*axes])


_CLIPS, _HEADS = {"clips": True}, {"cells": ("head",)}
_BOTH = {"cells": ("head", "token")}

#: How figures are drawn that need more than their defaults and one example of each input, or that have
#: several ways to draw. Every other figure is drawn as it is.
CASES: Mapping[str, list[Case]] = {
    "ablation_bars": [Case(), Case({"measure": "top1_ablated"})],
    "ablation_heatmap": [Case(example=_HEADS), Case({"width": "one_column"}, _HEADS)],
    "attention_by_layer": [
        Case(),
        Case({"measure": "attention_entropy", "width": "two_columns"}),
        Case({"measure": "attention_frame_distance"}, _CLIPS),
    ],
    "attention_maps": [
        Case({"query": [1, 2], "image": [0, "c"]}),
        Case({"width": "one_column", "heads": [1]}),
        Case({"query": [1, 0, 2]}, _CLIPS),
    ],
    "decoder_similarity": [Case(), Case({"width": "one_column"})],
    "circuit_graph": [Case({"n_edges": 4}), Case({"n_edges": 8, "width": "two_columns"})],
    "head_types": [Case(), Case({"width": "one_column"})],
    "firing_frequencies": [
        Case(
            slots={"quality": lambda: grid(schema.Quality, architecture=["relu", "topk"], layer=[0, 1])},
        )
    ],
    "latent_states": [
        Case(slots={"quality": lambda: grid(schema.Quality, layer=[0, 1, 2], seed=[0, 1])}),
        Case(slots={"quality": lambda: grid(schema.Quality, architecture=["relu", "topk"], layer=[0, 1])}),
    ],
    "latents_over_time": [Case(), Case({"by": None, "width": "two_columns"})],
    "latents_vs_neurons": [
        Case(
            slots={
                "latents": lambda: grid(schema.Quality, k=[4, 8, 16], seed=[0, 1]),
                "neurons": lambda: grid(schema.Quality, k=[4, 8, 16]),
            }
        )
    ],
    "lens_heatmap": [Case(), Case({"measure": "ce"}, _CLIPS)],
    "lens_maps": [Case(), Case({"frame": 1}, _CLIPS)],
    "metric_by_axis": [
        Case(
            {"variable": "test_accuracy", "along": "n_layers", "level": 0.333, **params},
            slots={
                "data": lambda: grid(schema.Model, attention_only=[False, True], n_layers=[1, 2], seed=[0, 1])
            },
        )
        for params in ({}, {"columns": "attention_only", "width": "two_columns"})
    ],
    "patching_heatmap": [
        Case(),
        Case({"metric": "kl", "view": "tokens", "width": "one_column"}),
        Case({"width": "one_column"}, _HEADS),
        Case({"metric": "probability", "layers": [1]}, _BOTH),
        Case({"view": "tokens"}, _BOTH),
        Case({}, _CLIPS),
        Case({"view": "tokens"}, _CLIPS),
    ],
    "rollout_maps": [Case(), Case({"query": [0, 1, 1], "image": "b"}, _CLIPS)],
    "sae_training_curves": [
        Case(slots={"sae": lambda: grid(schema.Dictionary, architecture=["relu", "topk"], seed=[0, 1])})
    ],
    "sae_l0_by_layer": [Case(slots={"quality": lambda: grid(schema.Quality, layer=[0, 1, 2], seed=[0, 1])})],
    "sae_pareto": [
        Case(
            params,
            slots={
                "quality": lambda: grid(
                    schema.Quality, architecture=["relu", "topk"], k=[4, 8, 16], seed=[0, 1]
                )
            },
        )
        for params in ({}, {"y": "ce_recovered", "columns": "architecture", "width": "two_columns"})
    ],
    "table": [
        Case(
            {"variables": ["l0", "fvu"], "columns": ["token_kind"], "width": "two_columns"},
            slots={
                "data": lambda: grid(schema.Quality, architecture=["relu", "topk"], k=[8, 16], seed=[0, 1])
            },
        )
    ],
    "top_images": [Case(), Case({"by": "quantile"}), Case({"frames": "strip"}, _CLIPS)],
    "training_curves": [
        Case(slots={"model": lambda: grid(schema.Model, n_layers=[1, 2], seed=[0, 1, 2])}),
    ],
}


def cases(declared: Step) -> list[Case]:
    """The ways in which a figure is drawn in tests."""
    return CASES.get(declared.name, [Case()])


class Drawn(NamedTuple):
    """A figure before and after it was written, with its parameters."""

    plot: Plot
    output: Output
    params: StepParams


def drawn(declared: Step, case: Case) -> Drawn:
    """A figure from examples.

    Raises:
        AssertionError: when it cannot be drawn, saying what to add.
    """
    try:
        params = declared.params.model_validate(dict(case.params))
        slots = {name: _filled(declared, name, case) for name in declared.inputs}
        with house_style():
            plot = declared.function.__wrapped__(**slots, params=params)
            plot.figure.draw_without_rendering()
        return Drawn(plot, declared.function(**slots, params=params, job=Job()), params)
    except ValueError as error:
        raise AssertionError(
            f"figure {declared.name} cannot be drawn from examples: {error}\nSay how in CASES of "
            "tests/examples.py (parameters, or inputs made otherwise), or add what the data lacks to the "
            "examples in prisma_steps/examples/"
        ) from error


def _filled(declared: Step, name: str, case: Case) -> xr.Dataset | Artifact:
    slot = declared.inputs[name]
    if name in case.slots:
        return case.slots[name]()
    return grid(slot.kind, seed=[0, 1]) if slot.gather else schema.example(slot.kind, **case.example)
