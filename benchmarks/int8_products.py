"""A linear layer in int8 by what torch (and ONNX Runtime, if installed) offer on this processor, beside float32.

    python -m benchmarks.int8_products [--rows 512] [--repeats 7]

The layers of one block of SmolLM2-135M, one thread; processor time with all that a way needs around its product
(rounding of the activations, scaling of the outputs), summed over the block. Ways take turns; a ratio is of one turn.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environment import RESULTS, environment, save
from clara.config.flags import plain_parser
from clara.errors import command_line
from clara.model.int8 import Int8Linear

_LAYERS = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))  # outputs, inputs
Way = Callable[[Tensor], Tensor]


def by_tensor(weight_OI: Tensor) -> Way:
    """FBGEMM with one scale for all activations of a batch, as `torch.ao.quantization` makes it."""
    torch.backends.quantized.engine = "fbgemm"
    scale_O = weight_OI.abs().amax(dim=1) / 127
    zeros_O = torch.zeros(len(scale_O), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated
        rounded = torch.quantize_per_channel(weight_OI, scale_O.double(), zeros_O, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(rounded, None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, True)


def by_int_mm(weight_OI: Tensor) -> Way:
    """`torch._int_mm`, which torchao calls without a compiler."""
    scale_O = weight_OI.abs().amax(dim=1) / 127
    rounded_IO = (weight_OI / scale_O[:, None]).round().to(torch.int8).T.contiguous()

    def product(x: Tensor) -> Tensor:
        scale = x.abs().amax(dim=1, keepdim=True) / 127
        return torch._int_mm((x / scale).round().to(torch.int8), rounded_IO).float() * scale * scale_O

    return product


def by_onnx_runtime(weight_OI: Tensor) -> Way:
    """ONNX Runtime's integer product alone, without rounding and scaling."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rounded_IO = (weight_OI / weight_OI.abs().amax(dim=1, keepdim=True) * 63).round().to(torch.int8).T.contiguous()
    num_inputs, num_outputs = rounded_IO.shape
    constants = [
        numpy_helper.from_array(rounded_IO.numpy(), "w"),
        numpy_helper.from_array(np.array(128, np.uint8), "z"),
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, num_inputs])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [None, num_outputs])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given: dict[int, Any] = {}

    def product(x: Tensor) -> Tensor:
        rounded = given.setdefault(id(x), (x / x.abs().amax() * 127 + 128).round().to(torch.uint8).numpy())
        return torch.from_numpy(session.run(None, {"x": rounded})[0])

    return product


def ways(weight_OI: Tensor) -> dict[str, Way]:
    """What there is on this machine."""
    narrow_OI = weight_OI.bfloat16()
    found: dict[str, Way] = {
        "float32": lambda x: nn.functional.linear(x, weight_OI),
        "bfloat16": lambda x: nn.functional.linear(x.bfloat16(), narrow_OI),
        "int8, by token (ours: torch's oneDNN)": Int8Linear(weight_OI, None),
        "int8, one scale a batch (torch's FBGEMM)": by_tensor(weight_OI),
        "int8, torch._int_mm": by_int_mm(weight_OI),
    }
    try:
        found["int8, ONNX Runtime, product alone"] = by_onnx_runtime(weight_OI)
    except ImportError:
        print("ONNX Runtime is not installed, and left out")
    return found


def measure(rows: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a block by each way, and how many times as fast as float32 it is, by turn."""
    layers = [(ways(torch.randn(shape) * 0.05), torch.randn(rows, shape[1])) for shape in _LAYERS]
    spent: dict[str, list[float]] = {name: [] for name in layers[0][0]}
    for turn in range(repeats + 1):
        for name, seconds in spent.items():
            begin = time.process_time()
            for by, x in layers:
                by[name](x)
            seconds += [time.process_time() - begin] * bool(turn)  # the first turn does not count
    found = {}
    for name, seconds in spent.items():
        ratios = [exact / mine for exact, mine in zip(spent["float32"], seconds, strict=True)]
        found[name] = {
            "milliseconds": 1000 * statistics.median(seconds),
            "times": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return found


def markdown(about: dict[str, Any], found: dict[str, dict[str, float]]) -> str:
    """The figures in Markdown."""
    lines = [
        "# Linear layers in int8",
        "",
        f"`{about['command']}`",
        "",
        f"{about['processor']}, one thread. Processor time of one block of SmolLM2-135M; speed beside float32, median "
        "[least, most] of the turns.",
        "",
        "| way | milliseconds | times float32 |",
        "|---|---|---|",
    ]
    for name, row in found.items():
        ratio = f"{row['times']:.2f} [{row['least']:.2f}, {row['most']:.2f}]"
        lines.append(f"| {name} | {row['milliseconds']:.0f} | {ratio} |")
    return "\n".join([*lines, ""])


def main(argv: Sequence[str]) -> int:
    """The command line."""
    parser = plain_parser("benchmarks.int8_products", __doc__)
    parser.add_argument("--rows", type=int, default=512, help="tokens of a batch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="turns that count (default: %(default)s)")
    output = RESULTS / "int8_products"
    parser.add_argument("--output", type=Path, default=output, metavar="DIR", help="gets results.json and results.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    about = environment("benchmarks.int8_products")
    found = measure(options.rows, options.repeats)
    save(options.output, {**about, "ways": found}, markdown(about, found))
    print(markdown(about, found))
    return 0


if __name__ == "__main__":
    command_line(main)
