"""A retriever for LangChain (extra `langchain`): passages of a trained system as its documents."""

import threading
import weakref
from typing import TYPE_CHECKING

from clara.errors import InputError
from clara.retrieval.retriever import Retriever
from clara.system import System

try:
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
except ImportError:

    class BaseRetriever:  # type: ignore[no-redef]
        """In place of LangChain's where that is missing."""

        def __init__(self, **_: object) -> None:
            raise InputError("langchain-core is not installed; it comes with pip install 'clara-rag[langchain]'")


if TYPE_CHECKING:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun

_LOCKS: "weakref.WeakKeyDictionary[Retriever, threading.Lock]" = weakref.WeakKeyDictionary()
"""One thread at a time may use a system, and LangChain calls retrievers from several."""


class ClaraRetriever(BaseRetriever):
    """Finds the passages of a system, as `System.search` does.

    Attributes:
        system: what `clara.open` returned; with a filter, what its `only` returned.
        k: passages of a question; `invoke(question, k=…)` asks for another number.
    """

    system: System
    k: int = 5

    def _get_relevant_documents(
        self, query: str, *, run_manager: "CallbackManagerForRetrieverRun", k: int | None = None
    ) -> "list[Document]":
        with _LOCKS.setdefault(self.system.retriever, threading.Lock()):
            (found,) = self.system.search([query], k=self.k if k is None else k)
        return [
            Document(
                passage.text,
                id=str(passage.row_id),
                metadata={
                    "document_id": passage.document_id,
                    "title": passage.title,
                    "score": passage.score,
                    "sources": list(passage.sources),
                    "why": dict(passage.why),
                },
            )
            for passage in found
        ]
