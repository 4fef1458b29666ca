"""The signature of a registered model: what it answers with, and the parameters of a request.

It has no schema of inputs: MLflow would take the first column of a table for the questions, or refuse a list of them.
The model reads both itself, and refuses what is neither.
"""

from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Map, Object, ParamSchema, ParamSpec, Property, Schema

from clara.retrieval.request import PARAMETERS

_PASSAGE = Object(
    [
        Property("document_id", DataType.string),
        Property("row_id", DataType.long),
        Property("title", DataType.string),
        Property("text", DataType.string),
        Property("sources", Array(DataType.string)),
        Property("contributions", Map(DataType.double)),
    ]
)
_REPLY = Object(
    [
        Property("question", DataType.string),
        Property("answer", DataType.string),
        Property("documents", Array(_PASSAGE)),
        Property("scores", Array(DataType.double)),
        Property("unread", DataType.string),
    ]
)
SIGNATURE = ModelSignature(
    outputs=Schema([ColSpec(_REPLY)]),
    params=ParamSchema([ParamSpec(name, DataType.long, None) for name in PARAMETERS]),
)
