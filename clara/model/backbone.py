"""The frozen causal LM that every role shares, with routed adapters on all linear layers of its trunk."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from clara.config.encoding import INT8
from clara.config.model import Backbone as BackboneSettings
from clara.config.model import Lora
from clara.errors import InputError
from clara.model.backbone_files import load_lm
from clara.model.lora import Route, add_adapter, current_route, install, routed
from clara.model.output_check import check, measure_output
from clara.model.precision import DEFAULT_TYPE, multiplies_bfloat16, widened
from clara.storage.cache import local_folder

logger = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A causal LM whose trunk takes embeddings and the name of an adapter.

    Shapes: B rows, L positions, D hidden size, V vocabulary.
    """

    def __init__(self, lm: PreTrainedModel, settings: Lora, adapters: Sequence[str], folder: str = "") -> None:
        """Take a model that is loaded, add fresh adapters, and check that its trunk and output layer work alone.

        Raises:
            InputError: they cannot (see `clara.model.output_check`), or the trunk has no layer to adapt.
        """
        super().__init__()
        name = folder or type(lm).__name__
        self.output_transform = measure_output(lm, name)
        self.lm = lm.requires_grad_(False)
        _switch_off_dropout(lm)
        self.folder = folder
        self._recomputes = False
        self.num_kept_tokens = 0
        self.lora = settings
        self.trunk_path = next(path for path, module in lm.named_modules() if module is lm.get_decoder())
        self.layers = install(lm.get_decoder())
        if not self.layers:
            raise InputError(
                f"{name}: no linear layer (torch.nn.Linear, or GPT-2's Conv1D) to adapt in "
                "its trunk; take another causal LM"
            )
        check(lm, self.embed, lambda embeddings: self.trunk(embeddings, Route()), self.logits, name)
        for adapter in adapters:
            self.add_adapter(adapter)

    @classmethod
    def load(
        cls,
        settings: BackboneSettings,
        lora: Lora,
        adapters: Sequence[str],
    ) -> "Backbone":
        """Read an LM folder, or the copy of one behind a URL (never a hub).

        Args:
            settings: the folder, and how its model computes.
            lora: of the adapters.
            adapters: names of fresh ones.

        Raises:
            InputError: see `load_lm`.
        """
        folder, dtype, attention = settings.path, settings.dtype, settings.attention
        local = local_folder(folder)
        building: AbstractContextManager[object] = nullcontext() if dtype == "float32" else DEFAULT_TYPE
        with building:
            lm = load_lm(local, f"backbone.path {folder!r}", dtype=dtype, attn_implementation=attention)
        if dtype == "bfloat16" and not torch.cuda.is_available() and not multiplies_bfloat16():
            logger.warning(
                "this processor has no instructions for bfloat16 products; float32 is several times faster on it"
            )
        backbone = cls(lm, lora, adapters, folder)
        if settings.gradient_checkpointing:
            backbone.enable_checkpointing()
        return backbone

    def add_adapter(self, adapter: str) -> None:
        """A fresh adapter on every layer."""
        add_adapter(self.layers, adapter, self.lora)

    def extend_vocabulary(self, num_kept: int, input_AD: Tensor, output_AD: Tensor) -> None:
        """Give the LM tokens that its tokenizer does not have: it may read and emit them, and no text can hold one.

        Args:
            num_kept: the first so many of the LM's own tokens stay, the rest (padding of the vocabulary) goes.
            input_AD: input embeddings of A tokens, whose ids follow.
            output_AD: their rows of the output matrix; the same as the input rows where the LM ties both.

        Raises:
            InputError: the shapes don't fit, or the output layer has a bias.
        """
        embedding, head = self.embedding, cast(nn.Linear, self.lm.get_output_embeddings())
        wanted = (input_AD.shape[0], self.hidden_size)
        if input_AD.shape != wanted or output_AD.shape != wanted or not 0 < num_kept <= embedding.weight.shape[0]:
            raise InputError(
                f"{self.folder or type(self.lm).__name__}: added tokens with input rows {list(input_AD.shape)} and "
                f"output rows {list(output_AD.shape)} behind {num_kept} rows of the backbone, "
                f"expected [A, {self.hidden_size}] both, behind at most {embedding.weight.shape[0]}; "
                "take the backbone that the checkpoint was made for"
            )
        if getattr(head, "bias", None) is not None:
            raise InputError(
                f"{self.folder or type(self.lm).__name__}: its output layer has a bias; added tokens are not "
                "supported with one"
            )
        tied = head.weight is embedding.weight
        if tied and not torch.equal(input_AD, output_AD):
            raise InputError(
                f"{self.folder or type(self.lm).__name__}: ties input and output rows, the added tokens have other "
                "output than input rows; "
                "take the backbone that the checkpoint was made for"
            )

        def joined(weight: Tensor, added_AD: Tensor) -> nn.Parameter:
            return nn.Parameter(torch.cat([weight[:num_kept], added_AD.to(weight)]), requires_grad=False)

        with torch.no_grad():
            embedding.weight = joined(embedding.weight, input_AD)
            head.weight = embedding.weight if tied else joined(head.weight, output_AD)
        embedding.num_embeddings = head.out_features = embedding.weight.shape[0]
        embedding.padding_idx = None  # it may be among the removed rows, and matters to the gradient alone
        self.lm.config.get_text_config().vocab_size = embedding.weight.shape[0]
        # Kept apart from the LM's weights: ZeRO-3 leaves those empty when a checkpoint is written.
        self.num_kept_tokens = num_kept
        self.register_buffer("added_input", input_AD.detach().float().clone(), persistent=False)
        self.register_buffer("added_output", output_AD.detach().float().clone(), persistent=False)

    def added_tokens(self) -> dict[str, Tensor]:
        """`input` and `output` rows `[A, D]` of the tokens of `extend_vocabulary`; empty where there are none."""
        if not self.num_kept_tokens:
            return {}
        return {"input": cast(Tensor, self.added_input), "output": cast(Tensor, self.added_output)}

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass, each layer under the route that its forward pass had."""

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), routed(current_route())

        self.lm.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
        )
        self._recomputes = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """Switch the mode of the modules.

        The LM stays in training mode while it recomputes: transformers checkpoints in no other.

        Nothing else in it depends on the mode: its dropout is off, and that of the adapters is an argument of each
        pass.
        """
        super().train(mode)
        if self._recomputes:
            self.lm.train()
        return self

    @property
    def embedding(self) -> nn.Embedding:
        """The input embeddings, `weight [V, D]`."""
        return cast(nn.Embedding, self.lm.get_input_embeddings())

    @property
    def hidden_size(self) -> int:
        """Hidden size D."""
        return int(self.embedding.weight.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations."""
        return self.embedding.weight.dtype

    def type_of_passes(self, adapter: str) -> str:
        """Type that passes of an adapter compute their products in, as a fingerprint names it."""
        in_int8 = any(adapter in layer.merged for layer in self.layers.values())
        return INT8 if in_int8 else str(self.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Device of the LM."""
        return self.embedding.weight.device

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Input embeddings `[B, L, D]`."""
        return cast(Tensor, self.embedding(ids_BL))

    def trunk(self, embeddings_BLD: Tensor, route: Route) -> Tensor:
        """The last hidden states, after the final norm: no logits, no other layer's states.

        Rows are padded on the right; attention is causal, so that no mask is needed: nothing looks at what comes later.

        Returns:
            `[B, L, D]`.
        """
        with routed(route):
            return self.lm.get_decoder()(inputs_embeds=embeddings_BLD, use_cache=False).last_hidden_state

    @torch.no_grad()
    def trunk_after(self, front_1FD: Tensor, embeddings_BLD: Tensor, route: Route) -> Tensor:
        """What `trunk` gives for rows behind one front that they share, which passes the LM once. No gradient.

        Returns:
            `[B, L, D]`, without the front.
        """
        decoder, cache = self.lm.get_decoder(), DynamicCache(config=self.lm.config.get_text_config())
        self.lm.eval()  # transformers keeps no cache in a mode that recomputes
        try:
            with routed(route):
                decoder(inputs_embeds=front_1FD, past_key_values=cache, use_cache=True)
                cache.batch_repeat_interleave(embeddings_BLD.shape[0])
                return decoder(inputs_embeds=embeddings_BLD, past_key_values=cache, use_cache=True).last_hidden_state
        finally:
            self.train(self.training)

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits `[..., V]` of chosen positions, in float32 at least, scaled and capped as the LM's own."""
        return self.output_transform(widened(self.lm.get_output_embeddings()(hidden)))

    @torch.no_grad()
    def generate(
        self,
        embeddings: Sequence[Tensor],
        route: Route,
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        together: bool = False,
    ) -> list[list[int]]:
        """Greedy continuation of each prompt `[length, D]`, up to a stop token or the LM's own, which is not returned.

        `together`: every rank generates now, and continues until the last one is done, as under ZeRO-3 each token is a
        collective.
        """
        own = getattr(self.lm.generation_config, "eos_token_id", None)
        stops = {*stop_ids, *(own if isinstance(own, list) else [] if own is None else [own])}
        longest = max(e.shape[0] for e in embeddings)
        padded = torch.stack([nn.functional.pad(e, (0, 0, longest - e.shape[0], 0)) for e in embeddings])
        mask = torch.stack(
            [torch.arange(longest, device=padded.device) >= longest - e.shape[0] for e in embeddings]
        ).long()
        was_training = self.lm.training
        self.lm.eval()
        try:
            with routed(route):
                output = cast(Any, self.lm).generate(
                    inputs_embeds=padded,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    use_cache=True,
                    eos_token_id=sorted(stops),
                    pad_token_id=stop_ids[0],
                    synced_gpus=together and dist.is_initialized() and dist.get_world_size() > 1,
                )
        finally:
            self.lm.train(was_training)
        rows = output.tolist()
        return [row[: next((i for i, t in enumerate(row) if t in stops), len(row))] for row in rows]


def _switch_off_dropout(lm: PreTrainedModel) -> None:
    """A frozen LM has no dropout, whatever its configuration says and whichever mode it is in."""
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_pdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
