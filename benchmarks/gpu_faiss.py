"""Part `faiss` of `benchmarks.gpu`: clustering, adding and flat search on a CUDA device, beside the CPU."""

import importlib
import time
from typing import Any

import numpy as np

from benchmarks.gpu import Save
from clara.errors import InputError

_FULL, _TINY = (500_000, 256, 1024, 1000), (2000, 16, 8, 10)  # rows, numbers of a key, lists, queries


def measure(name: str, device: str, tiny: bool, save: Save) -> dict[str, Any]:
    """See `benchmarks.gpu`. Without a FAISS, or without its GPU code, the reason is the result."""
    try:
        # A third-party library that may lack the CUDA libraries that torch has loaded by now.
        importlib.import_module("faiss")
    except ImportError as error:
        return {"cpu": None, "gpu": None, "why": f"FAISS cannot be imported: {error}"}
    rows, width, lists, queries = _TINY if tiny else _FULL
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((rows, width), np.float32)
    asked = rng.standard_normal((queries, width), np.float32)
    found: dict[str, Any] = {"rows": rows, "width": width, "lists": lists, "queries": queries, "gpu": None, "why": ""}
    try:
        if device == "cpu":
            raise InputError("--device cpu: nothing is measured on a GPU")
        from clara.index.gpu import require_gpu

        require_gpu()
        found["gpu"] = _seconds(keys, asked, lists, gpu=True)
        save(found)
    except InputError as error:
        found["why"] = str(error)
    found["cpu"] = _seconds(keys, asked, lists, gpu=False)
    return found


def _seconds(keys: np.ndarray[Any, Any], asked: np.ndarray[Any, Any], lists: int, *, gpu: bool) -> dict[str, float]:
    """Seconds of training an IVF index, of adding all rows, and of a flat search for 20 rows."""
    import faiss

    from clara.index.gpu import quantizer_on_gpu

    index = faiss.index_factory(keys.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    flat = faiss.IndexFlatIP(keys.shape[1])
    flat.add(keys)
    if gpu:
        flat = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, flat)
    found = {}
    for name, work in {
        "train": lambda: index.train(keys[: 64 * lists]),
        "add": lambda: index.add(keys),
        "search_flat": lambda: flat.search(asked, 20),
    }.items():
        began = time.perf_counter()
        with quantizer_on_gpu(index, wanted=gpu and name != "search_flat"):
            work()
        found[name] = time.perf_counter() - began
    return found
