"""FAISS on a CUDA device: k-means and the assignment of rows to lists, nearly all the work of building an IVF index."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss

from clara.errors import InputError


def require_gpu() -> None:
    """Check that there is a FAISS that has GPU code and a device for it.

    Raises:
        InputError: one of both is missing; says which.
    """
    if not hasattr(faiss, "StandardGpuResources"):
        raise InputError(
            f"--gpu: this FAISS ({faiss.__version__}) was built without GPU code; "
            "put faiss-gpu-cu12 in the place of faiss-cpu "
            "(pip uninstall faiss-cpu, pip install 'clara-rag[gpu]'), or leave --gpu out"
        )
    if faiss.get_num_gpus() < 1:
        raise InputError("--gpu: FAISS sees no CUDA device here; run where there is one, or leave --gpu out")


@contextmanager
def quantizer_on_gpu(index: Any, *, wanted: bool) -> Iterator[None]:
    """Let an IVF index cluster and assign on the first CUDA device, if wanted; codes are still computed on the CPU."""
    inverted: Any = faiss.try_extract_index_ivf(index) if wanted else None
    if inverted is None:
        yield
        return
    resources = faiss.StandardGpuResources()
    if not index.is_trained:
        flat = faiss.IndexFlatIP if inverted.metric_type == faiss.METRIC_INNER_PRODUCT else faiss.IndexFlatL2
        clustering = faiss.index_cpu_to_gpu(resources, 0, flat(inverted.d))
        inverted.clustering_index = clustering
        try:
            yield
        finally:
            inverted.clustering_index = None
        return
    before = inverted.quantizer
    there = faiss.index_cpu_to_gpu(resources, 0, before)
    inverted.quantizer = there
    try:
        yield
    finally:
        inverted.quantizer = before
