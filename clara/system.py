"""What `clara.open` returns: a trained system that answers, streams and searches."""

from collections.abc import Iterator, Sequence
from typing import overload

from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.model.decoding import Generation, RunningBatch, TextStream
from clara.retrieval.retriever import Answered, Passage, Retriever
from clara.storage.artefact import Artefact
from clara.storage.paths import Name, is_registered


class System:
    """A CHECKPOINT with its MEMORY and perhaps INDEX. One thread at a time may use it.

    Attributes:
        retriever: the parts below.
    """

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever

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
    ) -> "System":
        """See `clara.open`."""
        if is_registered(checkpoint):
            raise InputError(
                f"checkpoint {str(checkpoint)!r}: registered models are resolved by the command clara; give the folder "
                "or URL of the CHECKPOINT"
            )
        return cls(
            Retriever.open(
                checkpoint,
                Artefact.open(memory, "MEMORY", verify=verify),
                index or None,
                backbone=str(backbone),
                device=device,
                retrieval=retrieval,
            )
        )

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
        answered = self.retriever.ask(questions, num_selected=passages, max_new_tokens=max_new_tokens)
        return answered[0] if isinstance(question, str) else answered

    def stream(self, question: str, *, passages: int = 5, max_new_tokens: int = 32) -> Iterator[str]:
        """The text of the answer in pieces, each as soon as it is final; together they are the text that `ask` gives.

        Raises:
            InputError: see `Retriever.check`; also that the LM cannot be read token by token (see `RunningBatch`).
        """
        retriever = self.retriever
        retriever.check([question], passages, max_new_tokens)
        batch = RunningBatch(retriever.model)
        prompt, hits = retriever.model.prompts.question(question), retriever.hits([question], passages)[0]
        row = retriever.generation(prompt, hits, max_new_tokens)
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
        return [self.retriever.passages(hits) for hits in self.retriever.hits(questions, k)] if questions else []
