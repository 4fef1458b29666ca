"""What a causal LM computes behind its trunk, measured on the model itself: no list of families, no names of settings.

Memory tokens are embeddings without token ids, and losses take logits of chosen positions only, so that both the trunk
and the output layer are called alone. That is right where the trunk reads nothing but embeddings, looks at no later
position, and the logits are those of the output layer, times a scale and capped at most.

Shapes: L positions, D hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from clara.errors import InputError
from clara.model.precision import widened

_NUM_TOKENS = 6
_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4}
_COARSE = 2e-2
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ImportError, AssertionError)


@dataclass(frozen=True)
class OutputTransform:
    """logits = cap · tanh(scale · x / cap), where x are the outputs of the output layer."""

    scale: float = 1.0
    cap: float = math.inf

    def __call__(self, outputs: Tensor) -> Tensor:
        """Logits of the output layer's outputs, in their type."""
        scaled = outputs if self.scale == 1.0 else outputs * self.scale
        return scaled if math.isinf(self.cap) else self.cap * torch.tanh(scaled / self.cap)


def measure_output(lm: PreTrainedModel, name: str) -> OutputTransform:
    """The scale and cap between the output layer and the logits of a model.

    Numbers of all sizes replace the outputs of the output layer; the model's logits show what it makes of each.

    Args:
        lm: the model.
        name: its folder, for messages.

    Raises:
        InputError: the model cannot compute logits of token ids, or does something else with them.
    """
    head = cast(nn.Module | None, lm.get_output_embeddings())
    if head is None:
        raise _refusal(name, "it has no output layer")
    given: list[Tensor] = []

    def replace(_module: nn.Module, _inputs: object, outputs: Tensor) -> Tensor:
        size = outputs.shape[-1]
        x_V = torch.logspace(-2, 4, size) * torch.where(torch.arange(size) % 2 == 0, 1.0, -1.0)
        given.append(x_V.to(outputs.device))
        return given[-1].expand(outputs.shape)

    hook = head.register_forward_hook(replace)
    try:
        with _computing(lm, name):
            logits_V = widened(lm(input_ids=_token_ids(lm), use_cache=False).logits[0, -1])
    finally:
        hook.remove()
    # A model that uses the weights of its output layer without calling it shows nothing here; `check` compares it.
    return _fitted(given[-1], logits_V, _tolerance(lm), name) if given else OutputTransform()


def _fitted(x_V: Tensor, logits_V: Tensor, tolerance: float, name: str) -> OutputTransform:
    """The transform that maps the one to the other."""
    if logits_V.shape == x_V.shape:
        if torch.equal(x_V, logits_V):
            return OutputTransform()
        scale = float(logits_V[0] / x_V[0])  # the smallest number is far below any cap
        capped = abs(float(logits_V[-1] / x_V[-1])) < (1 - tolerance) * abs(scale)
        found = OutputTransform(scale, abs(float(logits_V[-1])) if capped else math.inf)
        if torch.allclose(found(x_V), logits_V, rtol=tolerance, atol=0.0):
            return found
    raise _refusal(name, "it changes its logits otherwise than by a scale and a cap")


def check(
    lm: PreTrainedModel,
    embed: Callable[[Tensor], Tensor],
    trunk: Callable[[Tensor], Tensor],
    logits: Callable[[Tensor], Tensor],
    name: str,
) -> None:
    """Compare a model's logits of a few token ids with those of its parts, as the caller calls them.

    Args:
        lm: the model.
        embed: input embeddings `[1, L, D]` of ids `[1, L]`.
        trunk: last hidden states `[1, L, D]` of embeddings.
        logits: logits `[..., V]` of states.
        name: the model's folder, for messages.

    Raises:
        InputError: they differ, the trunk reads more than embeddings, or looks at later positions.
    """
    ids_1L, tolerance = _token_ids(lm), _tolerance(lm)
    with _computing(lm, name):
        with _readers_of(lm, ids_1L) as readers:
            own = widened(lm(input_ids=ids_1L, use_cache=False).logits)
        embedded_1LD = embed(ids_1L)
        states_1LD = trunk(embedded_1LD)
        found = logits(states_1LD)[:, -own.shape[1] :]
        from_ids_1LD = lm.get_decoder()(input_ids=ids_1L, use_cache=False).last_hidden_state
        mixed_1LD = embedded_1LD.clone()
        mixed_1LD[:, -1] = embedded_1LD.mean(dim=1)
        mixed_states_1LD = trunk(mixed_1LD)
    if readers:
        raise _refusal(name, f"{', '.join(readers)} reads token ids too, beside the input embeddings; memory has none")
    if not _close(states_1LD, from_ids_1LD, tolerance):
        raise _refusal(
            name, "its trunk gives other states for the embeddings of tokens than for their ids, and memory has no ids"
        )
    if not _close(found, own, tolerance):
        raise _refusal(name, "its logits are not those of its output layer on the last hidden states")
    if not _close(mixed_states_1LD[:, :-1], states_1LD[:, :-1], tolerance):
        raise _refusal(name, "its trunk looks at later positions; expected causal attention")


def _token_ids(lm: PreTrainedModel) -> Tensor:
    """Ids `[1, L]` of tokens of the vocabulary that no setting names: those may mean padding, or an image."""
    text = lm.config.get_text_config()
    settings = [pair for config in (lm.config, text) for pair in vars(config).items()]
    named = {
        token
        for key, value in settings
        if key.endswith(("token_id", "token_index"))
        for token in (value if isinstance(value, list) else [value])
    }
    size = int(cast(nn.Embedding, lm.get_input_embeddings()).weight.shape[0])
    usual = [token for token in range(size // 3, size) if token not in named] or list(range(size))
    ids = [usual[position * len(usual) // (2 * _NUM_TOKENS)] for position in range(_NUM_TOKENS)]
    return torch.tensor([ids], device=lm.device)


@contextmanager
def _readers_of(lm: PreTrainedModel, ids_1L: Tensor) -> Iterator[list[str]]:
    """Paths of the embeddings, beside the input embeddings, that get these token ids inside the context."""
    found: list[str] = []

    def note(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def compare(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and torch.equal(inputs[0], ids_1L):
                found.append(path)

        return compare

    others = [
        (path, module)
        for path, module in lm.named_modules()
        if isinstance(module, nn.Embedding) and module is not lm.get_input_embeddings()
    ]
    hooks = [module.register_forward_pre_hook(note(path)) for path, module in others]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _tolerance(lm: PreTrainedModel) -> float:
    return _TOLERANCES.get(lm.dtype, _COARSE)


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether all numbers are finite and differ by less than a share of the largest of them."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return False
    difference = (found.float() - expected.float()).abs().max()
    return bool(difference <= tolerance * expected.float().abs().max())


@contextmanager
def _computing(lm: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside, the model computes without gradient, in eval mode, with an attention that its device has.

    Raises:
        InputError: the model fails.
    """
    was_training, attention = lm.training, str(lm.config._attn_implementation)
    elsewhere = lm.device.type == "cpu" and attention.startswith("flash")
    try:
        if elsewhere:
            cast(Any, lm).set_attn_implementation("eager")
        lm.eval()
        with torch.no_grad():
            yield
    except _FAILURES as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise _refusal(name, f"it fails where it reads embeddings in place of ids ({reason:.300})") from error
    finally:
        lm.train(was_training)
        if elsewhere:
            cast(Any, lm).set_attn_implementation(attention)


def _refusal(name: str, reason: str) -> InputError:
    return InputError(f"{name}: cannot be used as a backbone: {reason}; take another causal LM")
