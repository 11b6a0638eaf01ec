"""Record what modelscope's own mPLUG answers with small random weights; run inside modelscope's environment.

`python record.py FOLDER` writes the published form of a model (configuration, vocabulary, checkpoint as safetensors),
two pictures, and for every question token ids, states, logits and the answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

IMAGE_PX, PATCH_PX, VISION_WIDTH = 56, 14, 128
BERT = {
    "architectures": ["BertForMaskedLM"],
    "hidden_act": "gelu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "fusion_layers": 4,
    "stride_layer": 2,
    "text_encoder_layers": 2,
    "text_decode_layers": 2,
    "encoder_width": 64,
    "vocab_size": 160,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "model_type": "bert",
    "add_type_embeddings": True,
    "add_cross_attention": False,
}
WORDS = "yes no is the a red blue circle square there left right of above below two ? . , what color in image".split()
QUESTIONS = (
    "Is there a red circle in the image?",
    "Is the circle left of the square?",
    "What color is the square?",
    "Yes.",
    "Is the red circle above the blue square, and is the blue square below the red circle, and is there a red square "
    "right of the two circle in the image?",
)


def main(folder: Path) -> None:
    """Build the model, ask, and write."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_files(folder)
    from modelscope.models.multi_modal.mplug.configuration_mplug import MPlugConfig
    from modelscope.models.multi_modal.mplug.modeling_mplug import MPlugForVisualQuestionAnswering

    config = MPlugConfig.from_yaml_file(str(folder / "config.yaml"))
    config.model_dir = str(folder)
    torch.manual_seed(11)
    model = MPlugForVisualQuestionAnswering(config)
    visual = model.visual_encoder.visual
    visual.positional_embedding = torch.nn.Parameter(torch.zeros((IMAGE_PX // PATCH_PX) ** 2 + 1, VISION_WIDTH))
    for name, parameter in model.named_parameters():
        # Wide enough that answers differ from question to question.
        spread = 0.02 if "positional" in name else 0.25 if parameter.dim() > 1 else 0.1
        torch.nn.init.normal_(
            parameter.data, mean=1.0 if "LayerNorm.weight" in name or ".ln_" in name else 0.0, std=spread
        )
    model.eval()
    preprocess = _Preprocess(model.tokenizer)
    tensors: dict[str, torch.Tensor] = {}
    cases: list[dict[str, Any]] = []
    for number in range(2):
        picture = _picture(number)
        picture.save(folder / f"image_{number}.png")
        for question in QUESTIONS:
            key = str(len(cases))
            with torch.no_grad():
                given = preprocess((picture, question))
                tensors |= {f"{key}.{name}": tensor for name, tensor in _inner(model, given).items()}
                ids, scores = model(given["image"], given["question"], train=False)
            best = ids[0][0].tolist()
            answer = preprocess.tokenizer.decode(best, skip_special_tokens=True)
            cases.append(
                {"image": number, "question": question, "ids": best, "score": float(scores[0][0]), "answer": answer}
            )
    drop = ("_m.", "position_ids", "visual_encoder.transformer", "visual_encoder.token", "visual_encoder.ln_final")
    state = {
        name: tensor.clone().contiguous()
        for name, tensor in model.state_dict().items()
        if not any(part in name for part in drop)
        and name not in ("visual_encoder.positional_embedding", "visual_encoder.text_projection")
    }
    save_file(state, folder / "weights.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "tensors.safetensors")
    (folder / "cases.json").write_text(json.dumps({"upstream": "modelscope 1.40.2", "cases": cases}, indent=1))


class _Preprocess:
    """Prepare a picture and a question; modelscope's own class needs readers of video and audio to be imported."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        steps = [
            transforms.Resize((IMAGE_PX, IMAGE_PX), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(mean=mean, std=std),
        ]
        self.transform = transforms.Compose(steps)

    def __call__(self, given: tuple[Image.Image, str]) -> dict[str, Any]:
        picture, question = given
        tokens = self.tokenizer(
            question.lower(), padding="max_length", truncation=True, max_length=25, return_tensors="pt"
        )
        return {"image": self.transform(picture)[None], "question": tokens}


def _inner(model: Any, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what stands between picture, question and answer."""
    image = model.visual_encoder.visual(given["image"], skip_last_layer=True)
    image = model.visn_layer_norm(model.visn_fc(image))
    question = given["question"]
    text = model.text_encoder(question.input_ids, attention_mask=question.attention_mask, return_dict=True)
    seen = torch.ones(image.shape[:2], dtype=torch.long)
    states = model.fusion_encoder(
        encoder_embeds=text.last_hidden_state,
        attention_mask=question.attention_mask,
        encoder_hidden_states=image.clone(),
        encoder_attention_mask=seen,
        return_dict=False,
    )
    states = torch.cat(list(states[:2]), 1)
    logits = model.text_decoder(
        torch.tensor([[101, 110, 111]]),
        encoder_hidden_states=states,
        encoder_attention_mask=torch.cat([seen, question.attention_mask], 1),
        return_dict=True,
        reduction="none",
    ).logits[:, -1]
    return {
        "pixels": given["image"],
        "tokens": question.input_ids,
        "valid": question.attention_mask,
        "image": image,
        "states": states,
        "logits": logits,
    }


def _write_files(folder: Path) -> None:
    whole = {
        "task": "visual-question-answering",
        "bert_config": "config_bert.json",
        "image_res": IMAGE_PX,
        "vision_width": VISION_WIDTH,
        "clip_name": "ViT-L-14",
        "clip_embed_dim": 32,
        "clip_image_resolution": IMAGE_PX,
        "clip_vision_layers": 2,
        "clip_vision_width": VISION_WIDTH,
        "clip_vision_patch_size": PATCH_PX,
        "clip_context_length": 8,
        "clip_vocab_size": 64,
        "clip_transformer_width": 64,
        "clip_transformer_heads": 1,
        "clip_transformer_layers": 1,
        "beam_size": 5,
        "min_length": 1,
        "max_length": 10,
        "distill": False,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    (folder / "config_bert.json").write_text(json.dumps(BERT, indent=1))
    (folder / "configuration.json").write_text(
        json.dumps({"task": "visual-question-answering", "framework": "pytorch"})
    )
    vocabulary = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces = [chr(ord("a") + number) for number in range(26)]
    vocabulary += [piece for piece in pieces if piece not in vocabulary] + [f"##{piece}" for piece in pieces]
    assert len(vocabulary) >= BERT["vocab_size"], len(vocabulary)
    (folder / "vocab.txt").write_text("\n".join(vocabulary[: BERT["vocab_size"]]) + "\n")


def _picture(number: int) -> Image.Image:
    y, x = np.mgrid[0:70, 0:90]
    pixels = np.stack([150 + x // 4, 150 + y // 4, 180 - x // 8], axis=2).astype(np.uint8)
    pixels[(x - 30) ** 2 + (y - 30) ** 2 < 18**2] = (200, 30, 36) if number else (30, 150, 60)
    pixels[(abs(x - 65) < 15) & (abs(y - 45) < 15)] = (38, 84, 224)
    return Image.fromarray(pixels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
