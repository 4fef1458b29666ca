"""Mean of a MEMORY's vectors, which a centred score subtracts from every row.

Every shard has the sum of its rows, as they are stored, in `sum.safetensors`. `mean.safetensors` of the version holds
`mean [M, D]` float32, which readers use, and `sum [M, D]` float64 of the live rows, from which the next version
computes its own; an update does not read the vectors that it removes, and takes the mean of their shard for each. A
build and a refresh compute a new mean. An update and a compaction keep the mean that the
CHECKPOINT was trained with; the manifest says how far the rows have moved from it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from clara.arrays import Floats
from clara.errors import InputError
from clara.memory.codec import decode_memory
from clara.memory.fingerprint import of_memory
from clara.memory.product_quantiser import Codebook
from clara.storage import folders
from clara.storage.artefact import Artefact
from clara.storage.manifest import write_file
from clara.storage.paths import Name

SUM, MEAN, REPLACED = "sum.safetensors", "mean.safetensors", "replaced.safetensors"
MOVED = "mean_moved"
"""Field of a manifest: cosine between its mean and that of its live rows, and their distance in lengths of the mean."""
Sums = NDArray[np.float64]
_ROWS_AT_ONCE = 64


def sum_of(memory: Iterable[Floats]) -> Sums:
    """Sum `[M, D]` of the rows of blocks `[n, M, D]`, in their order; 0 without a block."""
    total: Sums = np.asarray(0.0) + sum(block.sum(axis=0, dtype=np.float64) for block in memory)
    return total


def write_sum(
    directory: Name,
    name: str,
    tensors: Mapping[str, NDArray[Any]],
    codec: str,
    hidden_size: int,
    codebook: Codebook | None,
) -> dict[str, Any]:
    """Write the sum of a shard's rows, given as stored tensors. Returns the manifest entry."""
    num_rows = len(tensors["memory"])
    pieces = (
        {key: tensor[begin : begin + _ROWS_AT_ONCE] for key, tensor in tensors.items() if key != "key"}
        for begin in range(0, max(1, num_rows), _ROWS_AT_ONCE)
    )
    total = sum_of(decode_memory(piece, codec, hidden_size, codebook) for piece in pieces)
    return write_file(directory, f"{name}/{SUM}", safetensors.numpy.save({"sum": total}))


def write_replaced(directory: Name, name: str, total: Sums) -> None:
    """Write the sum of the rows that an update replaces or removes, until the update is complete."""
    write_file(directory, f"{name}/{REPLACED}", safetensors.numpy.save({"sum": np.ascontiguousarray(total)}))


def mean_of_shard(memory: Artefact, name: str) -> Sums:
    """Mean `[M, D]` of all rows that a shard was written with; its vectors are not read."""
    files = [entry for entry in memory.manifest["files"] if entry["path"].rpartition("/")[0] == name]
    num_rows = next(entry["rows"] for entry in files if "rows" in entry)
    path = memory.file(f"{name}/{SUM}")
    mean: Sums = _tensors(path.read_bytes(), str(path))["sum"] / num_rows
    return mean


def sum_of_shards(directory: Name, names: Iterable[str], *, file: str = SUM) -> Sums:
    """Sum `[M, D]` of the rows of finished shards, added in the order of their names; 0 without a shard.

    Raises:
        InputError: a shard's sum is missing or damaged.
    """
    folder = folders.folder(directory)
    paths = [f"{name}/{file}" for name in sorted(names)]
    total: Sums = np.asarray(0.0) + sum(_tensors(folder.read(path), f"{directory}/{path}")["sum"] for path in paths)
    return total


def write_mean(directory: Name, total: Sums, num_rows: int, *, mean: Floats | None = None) -> dict[str, Any]:
    """Write the mean of a version.

    Args:
        directory: the MEMORY.
        total: sum `[M, D]` of its live rows.
        num_rows: live rows.
        mean: that of an older version, which is kept; None: the mean of the live rows.

    Returns:
        Its manifest entry as `file`, and how far the live rows' mean is from it as `moved`.
    """
    own = (total / max(1, num_rows)).astype(np.float32)
    mean = own if mean is None else mean
    payload = safetensors.numpy.save({"mean": np.ascontiguousarray(mean), "sum": np.ascontiguousarray(total)})
    return {"file": write_file(directory, MEAN, payload), "moved": _moved(mean, own)}


def has_mean(manifest: Mapping[str, Any]) -> bool:
    """Whether a MEMORY has its mean: one of an older program has none."""
    return any(entry["path"] == MEAN for entry in manifest["files"])


def read_mean(memory: Artefact) -> tuple[Floats, Sums]:
    """The mean of a MEMORY and the sum of its live rows.

    Raises:
        InputError: it has none, because an older program made it, or the file is damaged or of another MEMORY.
    """
    if not has_mean(memory.manifest):
        raise InputError(
            f"{memory.name}: has no mean of its vectors, which a centred score (model.score.centred) needs, because an "
            "older program made it; copy it with pipelines.compact, which computes the mean, or build it again"
        )
    path = memory.file(MEAN)
    tensors = _tensors(path.read_bytes() if path.is_file() else None, str(path))
    fields = of_memory(memory)
    shape = fields.num_memory_tokens, fields.hidden_size
    return _checked(tensors, "mean", shape, str(path)), _checked(tensors, "sum", shape, str(path))


def update_mean(old: Artefact, directory: Name, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write an updated version's mean, which is that of the old one, see `write_mean`.

    Args:
        old: the version that was updated.
        directory: the new version.
        reports: of `clara.memory.update.write_overlay`.
    """
    mean, total = read_mean(old)
    total = total + sum_of_shards(directory, [report["name"] for report in reports if report["overlay_rows"]])
    replaced = [report["name"] for report in reports if report["replaced"]]
    total = total - sum_of_shards(directory, replaced, file=REPLACED)
    folders.folder(directory).remove(f"{name}/{REPLACED}" for name in replaced)
    return write_mean(directory, total, sum(report["rows"] for report in reports), mean=mean)


def _tensors(raw: bytes | None, where: str) -> dict[str, NDArray[Any]]:
    try:
        return dict(safetensors.numpy.load(raw or b""))
    except SafetensorError as error:
        raise InputError(f"{where}: missing or damaged ({error}); build the MEMORY again") from error


def _checked(tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, int], where: str) -> NDArray[Any]:
    found = tensors.get(name)
    if found is not None and found.shape == shape and found.dtype.kind == "f" and np.isfinite(found).all():
        return found
    there = "missing" if found is None else f"{found.dtype} {list(found.shape)}, or not finite"
    raise InputError(
        f"{where}: {name} is {there}, expected finite numbers of shape {list(shape)}; build the MEMORY again, or copy "
        "it again"
    )


def _moved(mean: Floats, own: Floats) -> dict[str, float]:
    old, new = mean.ravel().astype(np.float64), own.ravel().astype(np.float64)
    lengths = float(np.linalg.norm(old) * np.linalg.norm(new))
    length = float(np.linalg.norm(old))
    return {
        "cosine": 1.0 if np.array_equal(old, new) else float(old @ new) / lengths if lengths else 0.0,
        "distance": float(np.linalg.norm(new - old)) / length if length else 0.0,
    }
