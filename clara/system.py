"""What `clara.open` returns: a trained system that answers, streams and searches."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.model.decoding import Generation, RunningBatch, TextStream
from clara.retrieval.answered import Answered, Passage
from clara.retrieval.filter import Filter
from clara.retrieval.retriever import Retriever
from clara.storage.artefact import Artefact
from clara.storage.paths import Name, require_resolved

if TYPE_CHECKING:
    from clara.index.search import OpenIndex


class System:
    """A CHECKPOINT with its MEMORY and perhaps INDEX. One thread at a time may use it.

    Attributes:
        retriever: the parts below.
    """

    def __init__(self, retriever: Retriever, only: Filter | None = None) -> None:
        self.retriever, self._only = retriever, only

    @classmethod
    def open(
        cls,
        checkpoint: Name,
        memory: Name,
        index: Name | None = None,
        *,
        backbone: Name = "",
        device: str = "cpu",
        retrieval: Retrieval | None = None,
        verify: bool = False,
        open_index: "OpenIndex | None" = None,
    ) -> "System":
        """See `clara.open`, and for `open_index` `Retriever.open`."""
        require_resolved(checkpoint)
        return cls(
            Retriever.open(
                checkpoint,
                Artefact.open(memory, "MEMORY", verify=verify),
                index or None,
                backbone=str(backbone),
                device=device,
                retrieval=retrieval,
                open_index=open_index,
            )
        )

    def only(self, *, documents: Sequence[str] | None = None, sources: Sequence[str] | None = None) -> "System":
        """The same system, whose passages come from these documents and these sources alone.

        Every row that passes is scored; where fewer pass than are asked for, there are fewer passages.

        Args:
            documents: document ids; None: all.
            sources: input files of the corpus, as MEMORY names them; None: all.

        Raises:
            InputError: a text in place of a list; or see `Filter.rows`.
        """
        for name, given in (("documents", documents), ("sources", sources)):
            if isinstance(given, str):
                raise InputError(f"{name} is the text {given!r}; expected a list of texts")
        chosen = Filter(None if documents is None else tuple(documents), None if sources is None else tuple(sources))
        chosen.rows(self.retriever.store)
        return System(self.retriever, chosen)

    @overload
    def ask(self, question: str, *, passages: int = 5, max_new_tokens: int = 32) -> Answered: ...

    @overload
    def ask(
        self, question: list[str] | tuple[str, ...], *, passages: int = 5, max_new_tokens: int = 32
    ) -> list[Answered]: ...

    def ask(
        self, question: str | list[str] | tuple[str, ...], *, passages: int = 5, max_new_tokens: int = 32
    ) -> Answered | list[Answered]:
        """The answer to a question, or those to a list of questions, which are generated in batches.

        Args:
            question: a text, or several.
            passages: that an answer is read from.
            max_new_tokens: longest answer.

        Raises:
            InputError: see `Retriever.check`.
        """
        questions = [question] if isinstance(question, str) else question
        answered = self.retriever.ask(questions, num_selected=passages, max_new_tokens=max_new_tokens, only=self._only)
        return answered[0] if isinstance(question, str) else answered

    def stream(self, question: str, *, passages: int = 5, max_new_tokens: int = 32) -> Iterator[str]:
        """The text of the answer in pieces, each as soon as it is final; together they are the text that `ask` gives.

        Raises:
            InputError: see `Retriever.check`; also that the LM cannot be read token by token (see `RunningBatch`).
        """
        retriever = self.retriever
        retriever.check([question], passages, max_new_tokens)
        batch = RunningBatch(retriever.model)
        hits = retriever.hits([question], passages, self._only)[0]
        row = retriever.generation(question, hits, max_new_tokens)
        return self._pieces(batch, row)

    def _pieces(self, batch: RunningBatch, row: Generation) -> Iterator[str]:
        pieces = TextStream(self.retriever.model, row)
        batch.join([row])
        while True:
            if piece := pieces.more():
                yield piece
            if row.done:
                return
            batch.step()

    def search(self, questions: Sequence[str], *, k: int = 20) -> list[tuple[Passage, ...]]:
        """The k best passages of each question, best first; fewer where fewer are found.

        Raises:
            InputError: see `Retriever.check`; or one text in place of a list.
        """
        if isinstance(questions, str):
            raise InputError(f"questions is the text {questions!r}; expected a list of texts")
        self.retriever.check(questions, k, 1)
        found = self.retriever.hits(questions, k, self._only) if questions else []
        return [self.retriever.passages(hits) for hits in found]
