from __future__ import annotations

import re
from pathlib import Path

import pytest

from prisma_steps.experiment import find_experiment, read_experiment

TEXT = """
nodes:
  quality: {step: evaluate_sae, sae: sae, model: vit, images: images}
  sae: {step: train_sae, activations: acts, k: {grid: [8, 16], axis: sparsity}}
  acts: {step: extract_activations, model: vit, images: images, sites: [embed]}
  vit: {step: train_vit, images: images, n_layers: {grid: [1, 2]}}
  images: {step: load_images, dataset: digits}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("experiments").mkdir()
    Path("experiments/dense.yaml").write_text(TEXT)
    return Path("experiments/dense.yaml")


def test_nodes_come_in_an_order_in_which_each_follows_its_inputs(file: Path) -> None:
    experiment = read_experiment(file)
    done: set[str] = set()
    for name, node in experiment.nodes.items():
        assert {reference.node for reference in node.references.values()} <= done
        done.add(name)
    assert done == set(re.findall(r"^  (\w+):", TEXT, re.MULTILINE))


def test_a_node_has_the_axes_of_its_inputs_then_its_own(file: Path) -> None:
    axes = {name: [axis.name for axis in axes] for name, axes in read_experiment(file).axes.items()}
    assert axes == {
        "images": [],
        "vit": ["n_layers"],
        "acts": ["n_layers"],
        "sae": ["n_layers", "sparsity"],
        "quality": ["n_layers", "sparsity"],
    }


def test_an_axis_of_one_parameter_has_its_own_name_alone(file: Path) -> None:
    (_, sparsity) = read_experiment(file).axes["sae"]
    assert sparsity.coords == {"sparsity": (8, 16)}


TABLE = """
  numbers:
    figure: table
    data: vit
    variables: [test_accuracy]
    number_format: {test_accuracy: .3f}
    best: {grid: [{test_accuracy: highest}, {}]}
"""


def test_a_parameter_may_be_a_mapping_and_a_grid_of_mappings(file: Path) -> None:
    file.write_text(TEXT + TABLE)
    node = read_experiment(file).nodes["numbers"]
    found = [params.model_dump() for params in node.combinations.values()]
    assert [params["number_format"] for params in found] == [{"test_accuracy": ".3f"}] * 2
    assert [params["best"] for params in found] == [{"test_accuracy": "highest"}, {}]


def test_found_by_name_and_by_path(file: Path) -> None:
    assert find_experiment("dense") == find_experiment("experiments/dense.yaml") == file


def test_title_is_the_name_where_none_is_given(file: Path) -> None:
    assert read_experiment(file).title == read_experiment(file).name == "dense"
    file.write_text("title: Dense?\ndescription: Of what use.\n" + TEXT)
    assert (read_experiment(file).title, read_experiment(file).description) == ("Dense?", "Of what use.")


def test_relative_folders_start_at_the_file(file: Path) -> None:
    Path("experiments/pictures").mkdir()
    file.write_text("nodes:\n  images: {step: load_images, dataset: image_folder, path: pictures}\n")
    (params,) = read_experiment(file).nodes["images"].combinations.values()
    assert Path(params.model_dump()["path"]) == Path("experiments/pictures").resolve()
