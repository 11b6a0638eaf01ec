"""The network of mPLUG for questions about pictures, under the names of its published checkpoint.

A CLIP vision tower encodes the picture, a BERT the question. In the fusion encoder the question attends to the picture;
every few layers both attend to each other as one sequence, and what that changes about the picture is added to it. A
BERT decoder writes the answer while it attends to picture and question.

Source: modelscope 1.40.2, models/multi_modal/mplug (behaviour and tensor names).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MplugConfig", "MplugNetwork", "Memory"]

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values of what a decoder attends to, by layer, each [B, heads, S, D / heads]."""


@dataclass(frozen=True)
class MplugConfig:
    """Sizes; the defaults are the published large model's.

    Attributes:
        image_px: Side of the square that pictures are stretched to.
        patch_px: Side of a patch.
        vision_width: Width of the vision tower.
        vision_layers: Its layers.
        width: Width D of the language parts.
        num_heads: Their attention heads.
        ffn_width: Width of their MLPs.
        vocab_size: Tokens.
        max_positions: Longest text.
        text_layers: Layers of the question's encoder.
        num_layers: Layers of the fusion encoder that the checkpoint holds.
        fusion_layers: How many of the last of them are used.
        stride_layer: Every so many of them one attends over picture and question together.
        decode_layers: Layers of the decoder.
        norm_eps: Epsilon of the language parts' LayerNorms.
        max_question_tokens: Longer questions are cut.
        num_beams: Beams of the search.
        min_answer_tokens: Steps at which an answer may not end.
        max_answer_tokens: Longest answer.
    """

    image_px: int = 504
    patch_px: int = 14
    vision_width: int = 1024
    vision_layers: int = 24
    width: int = 768
    num_heads: int = 12
    ffn_width: int = 3072
    vocab_size: int = 30522
    max_positions: int = 512
    text_layers: int = 6
    num_layers: int = 6
    fusion_layers: int = 6
    stride_layer: int = 3
    decode_layers: int = 12
    norm_eps: float = 1e-12
    max_question_tokens: int = 25
    num_beams: int = 5
    min_answer_tokens: int = 1
    max_answer_tokens: int = 10


class MplugNetwork(nn.Module):
    """Picture and question in, logits of the answer's next token out."""

    def __init__(self, config: MplugConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = nn.ModuleDict({"visual": _VisionTower(config)})
        self.text_encoder = _Text(config, num_layers=config.text_layers)
        self.fusion_encoder = nn.ModuleDict({"encoder": _Layers(config, config.num_layers, cross=True)})
        self.text_decoder = _Decoder(config)
        self.is_projected = config.vision_width != config.width
        if self.is_projected:
            self.visn_fc = nn.Linear(config.vision_width, config.width)
            self.visn_layer_norm = nn.LayerNorm(config.width, eps=1e-12)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the picture's tokens, [B, N, D].

        Args:
            pixels: [B, 3, side, side], normalised.
        """
        seen = self.visual_encoder["visual"](pixels)
        return self.visn_layer_norm(self.visn_fc(seen)) if self.is_projected else seen

    def encode(self, image: Tensor, question: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse pictures and questions.

        Args:
            image: [B, N, D] tokens of the pictures.
            question: [B, L] token ids.
            valid: [B, L] bool, where there is a token.

        Returns:
            States of picture and question, [B, N + L, D], and where there are any, [B, N + L] bool.
        """
        text = self.text_encoder(question, valid[:, None, None])
        everywhere = valid.new_ones(image.shape[:2])
        both = torch.cat([everywhere, valid], 1)
        layers = self.fusion_encoder["encoder"].layer
        start = max(0, self.config.num_layers - self.config.fusion_layers)
        for number, layer in enumerate(layers[start:]):
            if number and number % self.config.stride_layer == 0:
                joint = layer(torch.cat([image, text], 1), both[:, None, None])
                change, text = joint.split([image.shape[1], text.shape[1]], 1)
                image = image + change
            else:
                memory = layer.crossattention.memory(image)
                text = layer(text, valid[:, None, None], memory=memory, memory_mask=everywhere[:, None, None])
        return torch.cat([image, text], 1), both

    def memory(self, states: Tensor) -> Memory:
        """Return what the decoder attends to, so that it is computed once per question."""
        return [layer.crossattention.memory(states) for layer in self.text_decoder.bert.encoder.layer]

    def next_logits(self, tokens: Tensor, memory: Memory, valid: Tensor) -> Tensor:
        """Return the logits of the token after several beginnings of each answer.

        Args:
            tokens: [B, K, T] token ids of K beginnings.
            memory: See `memory`.
            valid: [B, S] bool, where there is something to attend to.

        Returns:
            [B, K, V].
        """
        return self.text_decoder(tokens, memory, valid)


class _VisionTower(nn.Module):
    def __init__(self, config: MplugConfig) -> None:
        super().__init__()
        width, num_patches = config.vision_width, (config.image_px // config.patch_px) ** 2
        self.conv1 = nn.Conv2d(3, width, config.patch_px, config.patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(num_patches + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        blocks = [_VisionBlock(width) for _ in range(config.vision_layers)]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        states = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
        for block in self.transformer["resblocks"].children():
            states = block(states)
        return self.ln_post(states)


class _VisionBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, states: Tensor) -> Tensor:
        seen = self.ln_1(states)
        states = states + self.attn(seen, seen, seen, need_weights=False)[0]
        inner = self.mlp["c_fc"](self.ln_2(states))
        # CLIP's quick form of GELU.
        return states + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))


class _Attention(nn.Module):
    """BERT's attention with its residual and LayerNorm."""

    def __init__(self, config: MplugConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.self = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict(
            {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=config.norm_eps)}
        )

    def memory(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each [B, heads, S, D / heads]."""
        return self._split(self.self["key"](states)), self._split(self.self["value"](states))

    def forward(self, states: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Attend to `memory` where `mask`, broadcast to [B, heads, T, S], is True."""
        query = self._split(self.self["query"](states))
        seen = functional.scaled_dot_product_attention(query, *memory, attn_mask=mask)
        return self.output["LayerNorm"](self.output["dense"](seen.transpose(1, 2).flatten(2)) + states)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class _Layer(nn.Module):
    def __init__(self, config: MplugConfig, *, cross: bool) -> None:
        super().__init__()
        self.attention = _Attention(config)
        if cross:
            self.crossattention = _Attention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.width, config.ffn_width)})
        self.output = nn.ModuleDict(
            {
                "dense": nn.Linear(config.ffn_width, config.width),
                "LayerNorm": nn.LayerNorm(config.width, eps=config.norm_eps),
            }
        )

    def forward(
        self,
        states: Tensor,
        mask: Tensor,
        *,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend within, then to `memory` where there is one: [n, T, D], of which K may share one of B memories."""
        states = self.attention(states, self.attention.memory(states), mask)
        if memory is not None:
            assert memory_mask is not None
            shared = states.reshape(len(memory[0]), -1, states.shape[-1])
            states = self.crossattention(shared, memory, memory_mask).reshape(states.shape)
        inner = functional.gelu(self.intermediate["dense"](states))
        return self.output["LayerNorm"](self.output["dense"](inner) + states)


class _Layers(nn.Module):
    def __init__(self, config: MplugConfig, num_layers: int, *, cross: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config, cross=cross) for _ in range(num_layers))


class _Embeddings(nn.Module):
    def __init__(self, config: MplugConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[-1], device=tokens.device)
        kinds = torch.zeros_like(tokens)
        whole = self.word_embeddings(tokens) + self.token_type_embeddings(kinds) + self.position_embeddings(places)
        return self.LayerNorm(whole)


class _Text(nn.Module):
    def __init__(self, config: MplugConfig, *, num_layers: int, cross: bool = False) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Layers(config, num_layers, cross=cross)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states = self.embeddings(tokens)
        for layer in self.encoder.layer:
            states = layer(states, mask)
        return states


class _Decoder(nn.Module):
    def __init__(self, config: MplugConfig) -> None:
        super().__init__()
        self.bert = _Text(config, num_layers=config.decode_layers, cross=True)
        transform = nn.ModuleDict(
            {
                "dense": nn.Linear(config.width, config.width),
                "LayerNorm": nn.LayerNorm(config.width, eps=config.norm_eps),
            }
        )
        self.cls = nn.ModuleDict(
            {
                "predictions": nn.ModuleDict(
                    {"transform": transform, "decoder": nn.Linear(config.width, config.vocab_size)}
                )
            }
        )

    def forward(self, tokens: Tensor, memory: Memory, valid: Tensor) -> Tensor:
        size, num_beginnings, length = tokens.shape
        earlier = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        states = self.bert.embeddings(tokens.flatten(0, 1))
        for layer, of_layer in zip(self.bert.encoder.layer, memory, strict=True):
            states = layer(states, earlier, memory=of_layer, memory_mask=valid[:, None, None])
        last = states[:, -1].unflatten(0, (size, num_beginnings))
        head = self.cls["predictions"]
        return head["decoder"](head["transform"]["LayerNorm"](functional.gelu(head["transform"]["dense"](last))))
