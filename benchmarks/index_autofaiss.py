"""One step of benchmarks/index.py in a Python with autofaiss (numpy below 2): build, search, figures as JSON."""

import json
import statistics
import sys
import time

import faiss
import numpy as np
from autofaiss import build_index


def main(folder: str, output: str, memory: str, candidates: int, threads: int) -> None:
    faiss.omp_set_num_threads(threads)
    began = time.monotonic()
    _, infos = build_index(
        embeddings=f"{folder}/keys",
        file_format="npy",
        index_path=f"{output}/autofaiss.index",
        index_infos_path=f"{output}/autofaiss.json",
        metric_type="ip",
        max_index_memory_usage=memory,
        current_memory_available="6GB",
        should_be_memory_mappable=True,
        nb_cores=threads,
    )
    built = time.monotonic() - began
    index = faiss.read_index(f"{output}/autofaiss.index", faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    keys = np.load(f"{folder}/query-keys.npy")
    rates = {}
    for batch in (1, len(keys)):
        seconds = []
        for _ in range(3):
            began = time.monotonic()
            for begin in range(0, len(keys), batch):
                index.search(keys[begin : begin + batch], candidates)
            seconds.append(time.monotonic() - began)
        rates[str(batch)] = len(keys) / statistics.median(seconds)
    np.save(f"{output}/found.npy", index.search(keys, candidates)[1])
    measured = {
        "build_seconds": built,
        "queries_per_second": rates,
        "kind": str(infos.get("index_key", "")),
        "parameters": str(infos.get("index_param", "")),
    }
    with open(f"{output}/figures.json", "w") as stream:
        json.dump(measured, stream)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
