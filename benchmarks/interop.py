"""The released shapes at full size and 224 px: our features against three other libraries'.

    python benchmarks/interop.py [--models deit_small deit_base ...] [--size 224]

Random weights are exported to transformers, timm and ONNX and read back by those; the table gives
the largest difference of the class token's features over their largest value, and a last column the
share of tensors that come back with the same bits. Needs the extras huggingface and onnx.
"""

import argparse
import gc
import tempfile
from pathlib import Path

import onnxruntime
import timm
import torch
import transformers
from torch import Tensor

from msn.config.sizes import ENCODERS
from msn.interop import huggingface, official, reading, timm_vit
from msn.interop.graph import Graph, write_onnx
from msn.interop.weights import Weights, weights_from
from msn.models.encoder import NORMED
from msn.models.vit import build_encoder

RELEASED = ("deit_small", "deit_base", "deit_large", "deit_base_p4", "deit_large_p7")


def random_weights(name: str) -> Weights:
    """An encoder in which no tensor is constant."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in build_encoder(ENCODERS[name]).state_dict().items()}
    tensors = {n: torch.randn(shape) * 0.05 for n, shape in shapes.items()}
    for n in tensors:
        if "norm" in n and n.endswith("weight"):
            tensors[n] += 1
    return weights_from(tensors, path=Path(name))


def by_transformers(weights: Weights, images: Tensor, folder: Path) -> Tensor:
    huggingface.write(folder, weights)
    model = transformers.ViTMSNModel.from_pretrained(folder).eval()
    resized = images.shape[-1] != weights.architecture.image_size
    out: Tensor = model(images, interpolate_pos_encoding=resized).last_hidden_state[:, 0]
    return out


def by_timm(weights: Weights, images: Tensor, folder: Path) -> Tensor:
    timm_vit.write(folder, weights)
    out: Tensor = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    return out


def by_onnxruntime(weights: Weights, images: Tensor, path: Path) -> Tensor:
    graph = Graph(weights, "cls", normalize=False)
    write_onnx(path, graph, images.expand(2, -1, -1, -1))
    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def kept(weights: Weights, folder: Path) -> float:
    """Share of tensors with the same bits after a way through every form."""
    official.write(folder / "a.pth.tar", weights)
    backs = [reading.read(folder / name) for name in ("a.pth.tar", "huggingface", "timm")]
    same = [torch.equal(b.encoder[n], t) for b in backs for n, t in weights.encoder.items()]
    return sum(same) / len(same)


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=RELEASED, choices=ENCODERS)
    parser.add_argument("--size", type=int, default=224, help="of the images, px")
    options = parser.parse_args()
    libraries = {"transformers": by_transformers, "timm": by_timm, "onnxruntime": by_onnxruntime}
    print(f"{'':14}" + "".join(f"{name:>14}" for name in (*libraries, "bits kept")))
    for name in options.models:
        weights = random_weights(name)
        images = torch.randn(1, 3, options.size, options.size)
        ours = weights.build().features(images, NORMED)
        cells = []
        with tempfile.TemporaryDirectory() as folder:
            forms = ("huggingface", "timm", "a.onnx")
            for (library, run), form in zip(libraries.items(), forms, strict=True):
                if library == "timm" and options.size != 224:
                    timm_vit.write(Path(folder, form), weights)
                    cells.append(f"{'-':>14}")  # it resizes positions otherwise
                    continue
                theirs = run(weights, images, Path(folder, form))
                error = float((theirs - ours).abs().max() / ours.abs().max())
                cells.append(f"{error:>14.1e}")
                gc.collect()
            print(f"{name:14}" + "".join(cells) + f"{kept(weights, Path(folder)):>14.0%}")


if __name__ == "__main__":
    main()
