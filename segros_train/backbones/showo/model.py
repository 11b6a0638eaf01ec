"""The modules of Show-o under the key names of its checkpoints, and the paths through them.

Shapes: S positions of a sequence, N image codes, D the width of the language model.

Source: showlab/Show-o models/modeling_showo.py, models/phi.py, models/clip_encoder.py @ 45a5a2de
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, PhiConfig, PhiForCausalLM

from segros_train.backbones.common.dialogues import IGNORED
from segros_train.backbones.common.recompute import residual_stream, run_blocks, sum_in_chunks
from segros_train.backbones.showo.attention import RowBlock, register
from segros_train.backbones.showo.config import ClipConfig, ShowoConfig
from segros_train.backbones.showo.vq import MagvitV2
from segros_train.equations import masked_token_nll

if TYPE_CHECKING:
    from segros_train.types import Checkpointing

__all__ = ["ShowoModel", "initialise"]

LOGITS_BYTES = 128 * 2**20
"""Float32 logits that a loss holds at once: 573 rows of the published vocabulary."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def _language_model(config: ShowoConfig) -> PhiForCausalLM:
    llm = config.llm
    model = PhiForCausalLM(
        PhiConfig(
            vocab_size=config.vocab_size,
            hidden_size=llm.hidden_size,
            intermediate_size=llm.intermediate_size,
            num_hidden_layers=llm.num_layers,
            num_attention_heads=llm.num_heads,
            num_key_value_heads=llm.num_heads,
            max_position_embeddings=llm.max_positions,
            layer_norm_eps=llm.layer_norm_eps,
            hidden_act="gelu_new",
            qk_layernorm=True,
            tie_word_embeddings=False,
            pad_token_id=None,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": llm.rope_theta,
                "partial_rotary_factor": llm.rotary_share,
            },
        )
    )
    model.set_attn_implementation(register())
    return model


def _vision_tower(config: ClipConfig) -> CLIPVisionModel:
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=config.image_size_px,
            patch_size=config.patch_size_px,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
        )
    )
    tower.set_attn_implementation("sdpa")
    return tower


class ShowoModel(nn.Module):
    """Language model, image tokenizer and, where the configuration has one, vision tower with its projector."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.config = config
        self.showo = _language_model(config)
        self.vq = MagvitV2(config.vq).requires_grad_(False)
        if config.clip is not None:
            width = config.llm.hidden_size
            self.mm_projector = nn.Sequential(
                nn.Linear(config.clip.hidden_size, width), nn.GELU(), nn.Linear(width, width)
            )
            self.clip = _vision_tower(config.clip).requires_grad_(False)
        self.checkpointing: Checkpointing = "none"

    def train(self, mode: bool = True) -> ShowoModel:
        """Set the mode of the trainable parts; the tokenizer and the vision tower stay in eval mode."""
        super().train(mode)
        self.vq.eval()
        if self.config.clip is not None:
            self.clip.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.showo.lm_head.weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """Return rows of the embedding table, [..., D] of [...] ids."""
        return self.showo.model.embed_tokens(ids)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return codes [B, h, w] of images [B, 3, height, width] in [-1, 1], in float32 whatever autocast says."""
        with torch.autocast(images.device.type, enabled=False):
            return self.vq.encode(images.float())

    @torch.no_grad()
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return images [B, 3, height, width], about [-1, 1], of codes [B, h, w]."""
        return self.vq.decode(codes)

    @torch.no_grad()
    def clip_features(self, images: Tensor) -> Tensor:
        """Return the patches [B, N, width] of the tower's last but one block for images [B, 3, h, w] in [-1, 1].

        Images of another size are resized to the tower's, which for images prepared to be drawn is the same crop.
        """
        return self.tower_features(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """Return images [B, 3, h, w] in [-1, 1] as the vision tower wants them, in its size."""
        assert self.config.clip is not None
        side = self.config.clip.image_size_px
        if images.shape[2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)
            images = images.clamp(-1, 1)
        mean, deviation = (
            torch.tensor(value, device=images.device).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_DEVIATION)
        )
        return ((images + 1) / 2 - mean) / deviation

    def tower_features(self, pixels: Tensor) -> Tensor:
        """Return the patches [B, N, width] of the tower's last but one block for normalised pixels [B, 3, h, w]."""
        return self.clip(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]

    def hidden(
        self,
        inputs: Tensor,
        positions: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = True,
        blocks: Sequence[RowBlock] | None = None,
        cache: DynamicCache | None = None,
    ) -> Tensor:
        """Return the last states of the language model, [B, S, D].

        The stock layers are run one by one, because the stock model reads "no mask" as "causal" and would build a
        dense mask for a block that sees everything.

        Args:
            inputs: [B, S, D] embedded sequence.
            positions: [B, S] or [1, S] position ids.
            mask: Bool, broadcast to [B, 1, S, keys], True where a row sees a column.
            causal: Without a mask: whether a position sees what precedes it, or everything.
            blocks: What rows see, block by block, in place of a mask.
            cache: Keys and values of what came before; extended in place.
        """
        model = self.showo.model
        # Tables take the type of what they are given: rounded to bf16, a position would be off by up to 0.2%.
        context = {
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": cache is not None,
            "position_embeddings": model.rotary_emb(inputs[:0].float(), position_ids=positions),
            "is_causal": causal,
            "blocks": blocks,
        }
        layers = [partial(layer, **context) for layer in model.layers]
        recompute = self.checkpointing != "none" and cache is None
        return model.final_layernorm(run_blocks(layers, residual_stream(inputs), recompute=recompute))

    def logits(self, states: Tensor) -> Tensor:
        """Return float32 logits over all ids, [..., vocabulary] of states [..., D]."""
        return self.showo.lm_head(states).float()

    def code_logits(self, states: Tensor) -> Tensor:
        """Return float32 logits over the codes alone, [..., codebook] of states [..., D]."""
        columns = slice(self.config.image_offset, self.config.mask_id)
        head = self.showo.lm_head
        return F.linear(states, head.weight[columns], head.bias[columns]).float()

    def nll(self, states: Tensor, labels: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of the labels that are not -100, a scalar; NaN without any.

        Logits are computed for the places of such labels alone, `LOGITS_BYTES` at a time, and again for the gradient.

        Args:
            states: [..., D], each at the place of its label.
            labels: [...] ids, -100 where nothing is asked.
        """
        rows = (labels != IGNORED).flatten().nonzero().squeeze(1)
        states, labels = states.flatten(0, -2)[rows], labels.flatten()[rows]

        def total(states: Tensor, labels: Tensor) -> Tensor:
            return masked_token_nll(self.logits(states), labels).sum()

        chunk = max(1, LOGITS_BYTES // (4 * self.config.vocab_size))
        return sum_in_chunks(total, states, labels, chunk=chunk) / len(rows)

    def next_token_nll(self, states: Tensor, labels: Tensor) -> Tensor:
        """Return `nll` of labels [B, S] that follow states [B, S, D] by one place."""
        return self.nll(states[:, :-1], labels[:, 1:])


def initialise(model: ShowoModel, rng: torch.Generator) -> None:
    """Draw fresh weights for the language model and the projector, in place.

    Matrices keep the scale of their input, biases are zero. Rows of codes are sums over their bits of one direction
    per bit, in the embedding table and in the head, so that codes that share bits start out alike.
    """
    for part in (model.showo.model.layers, getattr(model, "mm_projector", nn.Identity())):
        for name, parameter in part.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=rng)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
    offset, stop, width = model.config.image_offset, model.config.mask_id, model.config.llm.hidden_size
    signs = model.vq.quantize.embedding
    for table, deviation in ((model.showo.model.embed_tokens.weight, 0.3), (model.showo.lm_head.weight, 0.05)):
        nn.init.normal_(table, std=deviation, generator=rng)
        directions = torch.randn(signs.shape[1], width, generator=rng) * deviation * signs.shape[1] ** -0.5
        with torch.no_grad():
            table[offset:stop] = 0.2 * table[offset:stop] + signs @ directions
    nn.init.zeros_(model.showo.lm_head.bias)
