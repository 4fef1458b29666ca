"""Dense vectors that workers of a Beam runner compute for an INDEX in a bucket."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from clara.index.dense import NAME
from clara.index.embedding import DenseEncoder
from clara.storage.artefact import Artefact
from clara.storage.folders import folder
from pipelines.build_index import main
from tests.helpers import embedding_model
from tests.helpers.store_place import Place
from tests.helpers.texts import texts_of, write_texts


@pytest.mark.slow
def test_a_bucket_gets_the_vectors_and_keeps_no_block(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DenseEncoder, "block_rows", 16)
    memory, model = write_texts(tmp_path / "memory", texts_of(60)), embedding_model.write(tmp_path / "model")
    given = [f"--memory={memory}", "--queries=0", "--quiet", f"--dense-model={model}"]
    assert main([*given, f"--output={tmp_path / 'index'}"]) == 0
    assert main([*given, f"--output={place / 'index'}", "--runner=BundleBasedDirectRunner"]) == 0
    found = Artefact.open(place / "index", "INDEX")
    expected = (tmp_path / "index" / NAME / "vectors.npy").read_bytes()
    assert found.file(f"{NAME}/vectors.npy").read_bytes() == expected
    # One kind of store has the name in the path of the request that writes, the other in that which reads.
    requests = " ".join(unquote(path) for _, path in place.store.proxy.log)
    assert len(set(re.findall(r"\.build/dense-\w+/[^/? ]+", requests))) >= 60 // 16
    assert not [path for path in folder(place / "index").files() if ".build" in path]
