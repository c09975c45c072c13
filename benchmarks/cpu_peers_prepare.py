"""Makes the quantized models of the peers; runs in their environment.

python cpu_peers_prepare.py openvino MODEL.onnx RESULT.xml
python cpu_peers_prepare.py onnxruntime MODEL.onnx RESULT.onnx
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def openvino(source: str, target: str) -> None:
    """NNCF post-training quantization with the settings for transformers."""
    nncf: Any = importlib.import_module("nncf")
    ov: Any = importlib.import_module("openvino")
    make_batch: Any = importlib.import_module("cpu_peers_worker").make_batch
    data = nncf.Dataset(range(4), lambda seed: make_batch([64], 64, seed))
    model = nncf.quantize(
        ov.Core().read_model(source),
        data,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=4,
    )
    ov.save_model(model, target)


def onnxruntime(source: str, target: str) -> None:
    """Dynamic quantization."""
    tools: Any = importlib.import_module("onnxruntime.quantization")
    tools.quantize_dynamic(source, target, weight_type=tools.QuantType.QInt8)


if __name__ == "__main__":
    {"openvino": openvino, "onnxruntime": onnxruntime}[sys.argv[1]](sys.argv[2], sys.argv[3])
