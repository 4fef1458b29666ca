"""LangChain's own tests of retrievers, and that documents are the passages of a search."""

from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="the extra langchain is not installed")
standard = pytest.importorskip("langchain_tests.integration_tests", reason="langchain-tests is not installed")

import clara  # noqa: E402
from clara.langchain import ClaraRetriever  # noqa: E402
from clara.system import System  # noqa: E402
from tests.helpers.evaluation_world import World  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]
QUESTION = "Who is the mayor of Arlen on the Tamo?"


@pytest.fixture(scope="module")
def system(evaluation_artefacts: World) -> System:
    world = evaluation_artefacts
    return clara.open(world.checkpoint, world.memory, world.index)


class TestStandard(standard.RetrieversIntegrationTests):  # type: ignore[name-defined,misc]
    @pytest.fixture(autouse=True)
    def _open(self, system: System) -> None:
        self._system = system

    @property
    def retriever_constructor(self) -> type[ClaraRetriever]:
        return ClaraRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"system": self._system}

    @property
    def retriever_query_example(self) -> str:
        return QUESTION


async def test_documents_are_passages(system: System) -> None:
    (expected,) = system.search([QUESTION], k=3)
    retriever = ClaraRetriever(system=system, k=3)
    found = retriever.invoke(QUESTION)
    assert [d.page_content for d in found] == [p.text for p in expected]
    assert [d.id for d in found] == [str(p.row_id) for p in expected]
    assert found[0].metadata["document_id"] == expected[0].document_id
    assert found[0].metadata["why"] == dict(expected[0].why)
    assert [d.id for d in (await retriever.abatch([QUESTION, QUESTION]))[1]] == [d.id for d in found]
    only = ClaraRetriever(system=system.only(documents=["doc-07"]), k=1)
    assert {d.metadata["document_id"] for d in only.invoke(QUESTION)} == {"doc-07"}
