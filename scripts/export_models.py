"""Export one PyTorch architecture to ONNX; `scripts/models.py` runs this in an interpreter with torch.

    python scripts/export_models.py resnet50 --style dynamo --output resnet50_dynamo.onnx

Weights are random from a fixed seed (MiniLM's come from `--weights`); batch-norm statistics are drawn too,
because folding fresh ones (mean 0, variance 1) would hide mistakes.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

# torchvision's compiled part may be missing beside a CPU torch; its Python part needs these two schemas.
_SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _SCHEMAS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

TORCHSCRIPT_OPSET = 17
SEQUENCE = 128


class Tokens(torch.nn.Module):
    """A BERT encoder that takes token ids and mask and gives hidden states and pooled output."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)


class SentenceEmbedding(torch.nn.Module):
    """Mean of the hidden states over the mask, normalised: a unit vector for each sentence."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def image_model(architecture: str) -> torch.nn.Module:
    import timm

    options = {"zero_init_last": False} if architecture.startswith("resnet") else {}
    model = timm.create_model(architecture, pretrained=False, **options)
    randomise_batch_norms(model)
    return model


def randomise_batch_norms(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.7, 1.4)
            torch.nn.init.uniform_(module.weight, 0.7, 1.2)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)


def bert_base(_: Path | None) -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    return Tokens(BertModel(BertConfig(attn_implementation="eager")))


def minilm(weights: Path | None) -> torch.nn.Module:
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    assert weights is not None, "minilm needs --weights"
    settings = json.loads(weights.with_name("config.json").read_text())
    encoder = BertModel(BertConfig(**{**settings, "attn_implementation": "eager"}))
    missing, _ = encoder.load_state_dict(load_file(weights), strict=False)
    assert not [name for name in missing if "position_ids" not in name], missing
    return SentenceEmbedding(encoder)


TOKEN_MODELS: dict[str, Callable[[Path | None], torch.nn.Module]] = {"bert_base": bert_base, "minilm": minilm}
OUTPUTS = {"bert_base": ["hidden", "pooled"], "minilm": ["sentence_embedding"]}


def export(architecture: str, style: str, output: Path, weights: Path | None) -> None:
    torch.manual_seed(0)
    if architecture in TOKEN_MODELS:
        model = TOKEN_MODELS[architecture](weights)
        ids = torch.randint(0, 30000, (1, SEQUENCE))
        arguments = (ids, torch.ones_like(ids))
        names, outputs = ["input_ids", "attention_mask"], OUTPUTS[architecture]
    else:
        model = image_model(architecture)
        arguments = (torch.randn(1, 3, 224, 224),)
        names, outputs = ["image"], ["logits"]
    options: dict[str, object] = {"dynamo": True, "external_data": False}
    if style == "torchscript":
        options = {"dynamo": False, "opset_version": TORCHSCRIPT_OPSET}
    # MiniLM keeps its batch and sequence dynamic, for the tests of symbolic shapes.
    if architecture == "minilm":
        axes = {0: "batch", 1: "sequence"}
        if style == "torchscript":
            options["dynamic_axes"] = {
                "input_ids": axes,
                "attention_mask": axes,
                "sentence_embedding": {0: "batch"},
            }
        else:
            arguments = tuple(a.repeat(2, 1) for a in arguments)
            options["dynamic_shapes"] = (
                {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)},
            ) * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), arguments, str(output), input_names=names, output_names=outputs, **options
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architecture")
    parser.add_argument("--style", choices=["torchscript", "dynamo"], required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="safetensors file; config.json beside it")
    options = parser.parse_args()
    export(options.architecture, options.style, options.output, options.weights)


if __name__ == "__main__":
    main()
