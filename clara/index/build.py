"""Build an INDEX from a MEMORY's keys in bounded memory: train on a sample, add part by part, merge on disk.

Work in progress is kept in `.build/` inside the INDEX: the trained index, finished parts, the merged file. An
interrupted build resumes from there. Kinds of index without plain inverted lists (Flat, HNSW, fast-scan codes) are
built in RAM at once.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss

from clara.arrays import Ids
from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.index import parts
from clara.index.dense import NAME as DENSE
from clara.index.dense import make_dense
from clara.index.factory import check_kind, refused_by_faiss, train
from clara.index.gpu import quantizer_on_gpu, require_gpu
from clara.index.ivf_file import Source, bytes_of_row, emptied, has_lists, ids_of, merge, read_mapped
from clara.index.keys import IndexKeys
from clara.index.recall import FLOOR, Measurement, enforce_recall_floor, measure, with_floor
from clara.index.recipe import Build, recipe_of
from clara.index.rows import ADD_ROWS, parts_of, pieces_of, sources_of, unchanged_rows
from clara.index.search import FILE, KIND, MemoryIndex, check_rows
from clara.index.words import NAME as WORDS
from clara.index.words import make_words
from clara.memory.store import MemoryStore
from clara.progress import Progress
from clara.storage.artefact import Artefact
from clara.storage.folders import atomic_write
from clara.storage.manifest import MANIFEST, canonical_json, file_entry, make_directory, up_to_date, write_manifest
from clara.storage.paths import Name, is_url
from clara.storage.transfer import published

_DEFAULTS = Retrieval()
BUILD, TRAINED = ".build", "trained.faiss"
_PART_BYTES = 128 * 2**20

_log = logging.getLogger(__name__)


def build_index(
    memory_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    factory: str = "auto",
    *,
    first_level: int = _DEFAULTS.first_level,
    num_queries: int = 64,
    parent: Name = "",
    parts_from: Name = "",
    **options: Any,
) -> dict[str, Any]:
    """Call `build` with the usual settings; `options` are fields of `Build`. Returns the manifest."""
    how = Build(
        factory,
        measurement=Measurement(first_level, num_queries),
        parent=Artefact.open(parent, KIND) if parent else None,
        parts_from=Artefact.open(parts_from, KIND, lazy=True) if parts_from else None,
        **options,
    )
    return build(memory_dir, output, how)


def build(memory: Name | Artefact, output: Name, how: Build) -> dict[str, Any]:
    """Build an INDEX over a MEMORY, unless this very one is there, and measure its recall. Returns its manifest.

    Raises:
        InputError: no finished MEMORY, a damaged one, one without rows, a factory string that FAISS refuses, a GPU that
            is not there, no place to write, or, where that is asked for, a recall under the floor; or no row has
            a word, and the words part is asked for.
    """
    if how.gpu:
        require_gpu()
    store = MemoryStore.open(memory, mixed=how.mixed)
    if not len(store):
        raise InputError(f"{store.name}: has no live row, so there is nothing to index; build it from a corpus")
    keys = IndexKeys(store, how.score)
    recipe = recipe_of(keys, how)
    check_kind(keys, recipe["factory"], how.probes)
    if up_to_date(output, KIND, recipe):
        manifest = with_floor(output, how.recall_floor)
        enforce_recall_floor(str(output), manifest["measured"], recall_floor=how.recall_floor, strict=how.strict_recall)
        return manifest
    if is_url(output):
        with published(output) as place:
            return build(store.artefact, place, how)
    make_directory(output)
    if how.verify:
        store.artefact.verify()
    with refused_by_faiss(keys, recipe["factory"]):
        work = _Work(keys, Path(output) / BUILD, recipe, how)
        file = work.whole() or work.merged()
    index = read_mapped(file)
    check_rows(index, store, str(output))
    searched = MemoryIndex(store, index, score=how.score, exact_rows=how.exact_rows)
    measured = measure(searched, how.measurement, seed=how.seed, recall_floor=how.recall_floor, progress=how.progress)
    enforce_recall_floor(str(output), measured, recall_floor=how.recall_floor, strict=how.strict_recall)
    described = work.make_parts()
    (Path(output) / MANIFEST).unlink(missing_ok=True)
    os.replace(file, Path(output) / FILE)
    files = [file_entry(output, FILE, len(store)), *parts.move(work.folder, Path(output), described)]
    manifest = write_manifest(
        output,
        kind=KIND,
        files=files,
        recipe=recipe,
        aside={FLOOR: how.recall_floor},
        counts={"rows": len(store)},
        fingerprint=store.fingerprint,
        memory=store.hash,
        sources=sources_of(store),
        factory=recipe["factory"],
        score=how.score.model_dump(),
        words=described[WORDS],
        dense=described[DENSE],
        measured={key: value for key, value in measured.items() if key != "remedies"},
    )
    shutil.rmtree(work.folder)
    return manifest


# --- the work --------------------------------------------------------------------------------------------------------


class _Work:
    """A build under way, in a folder that another attempt resumes from."""

    def __init__(self, keys: IndexKeys, folder: Path, recipe: dict[str, Any], how: Build) -> None:
        self.folder = folder
        self._keys, self._store = keys, keys.store
        self._how, self._factory = how, str(recipe["factory"])
        # Neither the measurement nor how many lists a query probes touches a part.
        plan = canonical_json({key: recipe[key] for key in ("memory", "factory", "seed", "parent")} | keys.recipe)
        if not (folder / "plan.json").is_file() or (folder / "plan.json").read_text(encoding="utf-8") != plan:
            shutil.rmtree(folder, ignore_errors=True)
            atomic_write(folder / "plan.json", plan)
        self._parent = self._reusable()
        self._trained = self._read_or_train()

    def whole(self) -> Path | None:
        """The file of an index without inverted lists, made at once; None: it has lists."""
        if has_lists(self._trained):
            return None
        self._set_probes()
        index = faiss.IndexIDMap(self._trained)
        with self._bar("add", len(self._store), "row") as advance:
            for rows in pieces_of(self._store, ADD_ROWS):
                index.add_with_ids(self._keys.of_rows(rows), rows)
                advance(len(rows))
        _write(index, self.folder / FILE)
        return self.folder / FILE

    def merged(self) -> Path:
        """The file of an index with inverted lists: build the parts that are missing, then merge all of them."""
        sources = [] if self._parent is None else [self._parent]
        taken = None if self._parent is None else self._parent.taken
        rows_of_part = max(1, _PART_BYTES // bytes_of_row(self._trained))
        with self._bar("add", len(self._store) - (0 if taken is None else len(taken)), "row") as advance:
            for number, rows in enumerate(parts_of(self._store, rows_of_part, taken)):
                path = self.folder / f"part-{number:05d}.faiss"
                if not path.is_file():
                    _write(self._part(rows, advance), path)
                else:
                    advance(len(rows))
                sources.append(Source(read_mapped(path)))
        inverted = self._set_probes()
        with self._bar("merge", inverted.nlist, "list") as advance:
            merge(self._trained, sources, self.folder / FILE, lambda _: advance(1))
        return self.folder / FILE

    def make_parts(self) -> dict[str, dict[str, Any] | None]:
        """Link or build the words and dense parts. Returns their descriptions by name; None: there is none."""
        how, store = self._how, self._store
        older, words, dense = how.parts_from or how.parent, None, None
        if how.words:
            with self._bar("words", len(store), "row") as advance:
                words = make_words(store, self.folder, older, advance)
        if how.dense is not None or how.parts_from is not None:
            with self._bar("dense vectors", len(store), "row") as advance:
                dense = make_dense(store, self.folder, how.dense, older, advance, how.dense_workers)
        return {WORDS: words, DENSE: dense}

    def _set_probes(self) -> Any:
        """Set how many lists a query probes. Returns the inverted-list index inside the trained one, if any."""
        inverted = faiss.try_extract_index_ivf(self._trained)
        if inverted is not None:
            inverted.nprobe = min(inverted.nlist, self._how.probes or max(8, inverted.nlist // 16))
        return inverted

    def _part(self, rows: Ids, advance: Callable[[int], None]) -> Any:
        part = faiss.read_index(str(self.folder / TRAINED))
        with quantizer_on_gpu(part, wanted=self._how.gpu):
            for begin in range(0, len(rows), ADD_ROWS):
                some = rows[begin : begin + ADD_ROWS]
                part.add_with_ids(self._keys.of_rows(some), some)
                advance(len(some))
        return part

    def _read_or_train(self) -> Any:
        path = self.folder / TRAINED
        if not path.is_file():
            if self._parent is not None and self._how.parent is not None:
                trained = emptied(read_mapped(self._how.parent.folder / FILE))
            else:
                trained = train(self._keys, self._factory, seed=self._how.seed, gpu=self._how.gpu)
            _write(trained, path)
        return faiss.read_index(str(path))

    def _reusable(self) -> Source | None:
        """The parent's index and its rows with unchanged keys; None without a parent, or if the kinds differ."""
        parent = self._how.parent
        if parent is None:
            return None
        manifest, index = parent.manifest, read_mapped(parent.folder / FILE)
        reason = self._keys.why_not_those_of(parent)
        if not reason and (manifest["factory"] != self._factory or not has_lists(index)):
            reason = f"it is {manifest['factory']}, this one {self._factory}, and only inverted lists are taken over"
        taken = None if reason else unchanged_rows(self._store, manifest.get("sources", []), ids_of(index))
        if taken is None or not len(taken):
            _log.info(
                "index: nothing is taken over from %s: %s",
                parent.name,
                reason or "no row's key is known to be the same",
            )
            return None
        _log.info("index: %d of %d rows are taken over from %s", len(taken), len(self._store), parent.name)
        return Source(index, taken)

    @contextmanager
    def _bar(self, doing: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        with Progress(total, doing, f" {unit}s", shown=self._how.progress) as bar:
            yield lambda number: bar.update(number) and None


def _write(index: Any, path: Path) -> None:
    atomic_write(path, faiss.serialize_index(index).tobytes())
