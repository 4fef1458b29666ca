"""What stage `joint` trains, and whether the score of its CHECKPOINT allows that."""

from clara.config.model import Model
from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.config.stages import Joint
from clara.config.tree import Config
from clara.errors import InputError


def trained_roles(config: Config) -> list[str]:
    """The adapters that this stage trains, and whether the questions' mean does.

    Raises:
        InputError: nothing trains.
    """
    joint = config.joint
    chosen = {
        QUERY_REASONER: joint.train_query_reasoner,
        GENERATOR: joint.train_generator,
        COMPRESSOR: joint.train_compressor,
        "question_mean": joint.train_question_mean,
    }
    roles = [role for role, trained in chosen.items() if trained]
    if not roles:
        raise InputError(
            "joint.train_query_reasoner, train_generator, train_compressor and train_question_mean are all false: "
            "nothing is trained; set one of them"
        )
    return roles


def check_score(model: Model, settings: Joint) -> None:
    """Refuse settings that the score of the CHECKPOINT does not allow.

    Raises:
        InputError: a questions' mean is to be trained that the score does not subtract, or the fused score was made
            with another τ.
    """
    if settings.train_question_mean and not model.score.centred:
        raise InputError("joint.train_question_mean: the checkpoint's score is not centred; see training.set_score")
    fusion = model.fusion
    if not (fusion.published and not settings.fit_questions) and fusion.temperature != settings.temperature:
        raise InputError(
            f"joint.temperature is {settings.temperature}, the fused score of the checkpoint was made with "
            f"{fusion.temperature}; set joint.temperature={fusion.temperature}, or give the checkpoint the other one "
            f"(python -m training.set_score --set model.fusion.temperature={settings.temperature})"
        )
