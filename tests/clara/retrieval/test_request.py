"""Requests in every form that callers and MLflow's server give them; what cannot be answered is refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from clara.errors import InputError
from clara.retrieval.request import parameters_of, questions_of

TABLE = pd.DataFrame({"id": ["7", "8"], "question": ["Who?", "When?"]})
ASKED = TABLE[["question"]]


@pytest.mark.parametrize(
    "given",
    [
        ["Who?", "When?"],
        ("Who?", "When?"),
        np.array(["Who?", "When?"]),
        pd.Series(["Who?", "When?"]),
        ASKED,
        ASKED.to_dict("list"),
        ASKED.to_dict("records"),
        {"question": np.array(["Who?", "When?"])},
        np.array(ASKED.to_dict("records")),
    ],
)
def test_questions_are_found(given: Any):
    assert questions_of(given) == ["Who?", "When?"]


@pytest.mark.parametrize("given", ["Who?", np.array("Who?"), {"question": "Who?"}])
def test_one_text_is_one_question(given: Any):
    assert questions_of(given) == ["Who?"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["Who?", ""], "question 2 is ''; expected some text"),
        ([" \n"], "question 1 is"),
        (["Who?", None], "question 2 is None"),
        ([5], "question 1 is 5"),
        (ASKED.assign(question=["Who?", None]), "question 2 is"),
        (TABLE, "columns id, question; expected one column question and no other"),
        (TABLE.to_dict("list"), "columns id, question; expected one column question and no other"),
        (TABLE.to_dict("records"), "row 1 has the fields id, question; expected the field question and no other"),
        (TABLE[["id"]], "a table with the columns id; expected one column question"),
        (TABLE.rename(columns={"question": "Question"}), "columns id, Question; expected one column question"),
        (pd.concat([TABLE, TABLE], axis=1), "expected one column question"),
        (pd.DataFrame(["Who?"]), "a table with the columns 0; expected one column question"),
        ({"text": ["Who?"]}, "columns text; expected one column question"),
        ([{"id": "7"}], "row 1 has the fields id; expected the field question"),
    ],
)
def test_everything_else_is_refused(given: Any, message: str):
    with pytest.raises(InputError, match=message):
        questions_of(given)


def test_parameters():
    assert parameters_of(None) == parameters_of({}) == parameters_of({"num_selected": None}) == {}
    assert parameters_of({"num_selected": np.int64(3), "max_new_tokens": 4}) == {"num_selected": 3, "max_new_tokens": 4}
    for wrong in ({"temperature": 1}, {"num_selected": 0}, {"num_selected": 1.5}, {"max_new_tokens": True}):
        with pytest.raises(InputError, match=r"params.* expected"):
            parameters_of(wrong)
