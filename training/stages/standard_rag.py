"""Standard retrieval-augmented generation as the baseline: the generator of stage `joint` reads the passages' text.

Retrieval, questions, steps and the adapter's rank are those of any other joint run.
"""

from clara.config.model import Model
from clara.config.roles import GENERATOR
from clara.config.tree import Config
from clara.errors import InputError
from clara.model import lora
from clara.model.model import ClaraModel


def set_reads(model: ClaraModel, config: Config) -> None:
    """Let the model's generator read what `joint.reads` says.

    One that has learned to read memory is no start for text: its adapter begins again, as the plain LM.
    """
    if config.joint.reads != model.settings.reads:
        lora.restart_adapter(model.backbone.layers, GENERATOR)
        model.settings = model.settings.model_copy(update={"reads": config.joint.reads})


def check_reads(model: Model, config: Config) -> None:
    """Refuse settings that a generator which reads text does not allow, and a change from text back to memory.

    Raises:
        InputError: another part than the generator would train, or it has learned to read the other.
    """
    joint = config.joint
    if joint.reads == "memory":
        if model.reads == "text":
            raise InputError(
                "joint.reads is 'memory', and the generator of the CHECKPOINT has learned to read text "
                "(model.reads is 'text'); set joint.reads=text, or begin with another CHECKPOINT"
            )
        return
    wrong = {
        "train_query_reasoner": joint.train_query_reasoner,
        "train_compressor": joint.train_compressor,
        "train_question_mean": joint.train_question_mean,
        "labels_weight": joint.labels_weight,
        "utility_weight": joint.utility_weight,
        "evaluate_every": joint.evaluate_every,
        "fit_questions": joint.fit_questions,
    }
    if found := [f"{name}={str(value).lower()}" for name, value in wrong.items() if value]:
        raise InputError(
            f"joint.reads is 'text', which trains the generator alone, and joint.{', '.join(found)} needs one that "
            f"reads memory; set {', '.join(name.partition('=')[0] for name in found)} to false or 0"
        )
    if not (joint.train_generator and joint.answer_weight):
        raise InputError(
            f"joint.reads is 'text', and the generator does not train (train_generator={joint.train_generator}, "
            f"answer_weight={joint.answer_weight:g}); set train_generator=true and answer_weight=1"
        )
    if config.utilities:
        raise InputError("joint.reads is 'text', and utilities are given, which train retrieval alone; leave them out")
