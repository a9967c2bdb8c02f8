"""What transformers' `CLIPModel.save_pretrained` wrote, as open_clip has it."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from api_client.wire.errors import BadCheckpoint

from .weights import State

QUICK = "-quickgelu"  # how open_clip's registry ends the name of an architecture that has it

NAMES = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers": "transformer.resblocks",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": "visual.proj",
    ".self_attn.": ".attn.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}

# What transformers takes where a config says nothing; older ones leave out what is usual.
USUAL = {
    "text": {"hidden_act": "quick_gelu", "num_attention_heads": 8, "layer_norm_eps": 1e-5},
    "vision": {"hidden_act": "quick_gelu", "num_attention_heads": 12, "layer_norm_eps": 1e-5},
}


def wrote(state: State) -> bool:
    return "vision_model.pre_layrnorm.weight" in state  # so spelt by its CLIP alone


def renamed(state: State) -> dict[str, Tensor]:
    """The tensors under open_clip's names; what has no counterpart there keeps its own."""
    found = {_renamed(name): of for name, of in state.items() if not name.endswith("position_ids")}
    for name in {"text_projection", "visual.proj"} & found.keys():  # of nn.Linear
        found[name] = found[name].transpose(0, -1)
    for query in [name for name in found if ".attn.q_proj." in name]:
        three = [query.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        with suppress(KeyError, RuntimeError):  # what cannot be stacked is named as missing
            found[query.replace("q_proj.", "in_proj_")] = torch.cat([found[name] for name in three])
            for name in three:
                del found[name]
    return found


def require_network(config: Path, model: nn.Module, architecture: str) -> None:
    """Refuses what the shapes of weights do not tell, and would give wrong vectors silently.

    Args:
        config: the config.json that lies beside the weights.
        model: one that has the weights' names and shapes.

    Raises:
        BadCheckpoint: the config is unreadable, or asks for another network.
    """
    try:
        differences = dict(_differences(json.loads(config.read_text()), model))
    except OSError as error:
        raise BadCheckpoint(f"config {config}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"config {config} is none of transformers' CLIP: {error}") from None
    if differences:
        activations = {f"{tower}_config.hidden_act" for tower in USUAL}
        hint = f"; {_other(architecture)}" if differences.keys() == activations else ""
        told = ", ".join(f"{name} {what}" for name, what in differences.items())
        raise BadCheckpoint(
            f"{config} asks for another architecture than {architecture}: {told}{hint}"
        )


def _renamed(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _differences(config: Any, model: Any) -> Iterator[tuple[str, str]]:
    for tower, usual in USUAL.items():
        module = model.visual if tower == "vision" else getattr(model, "text", model)
        block = module.transformer.resblocks[0]
        has = {
            "hidden_act": "quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
            "num_attention_heads": block.attn.num_heads,
            "layer_norm_eps": block.ln_1.eps,
        }
        # The former name of such a part has the last word in transformers too.
        asked = config.get(f"{tower}_config_dict") or config.get(f"{tower}_config") or {}
        for field, unless_told in usual.items():
            if (value := asked.get(field, unless_told)) != has[field]:
                yield f"{tower}_config.{field}", f"{value} instead of {has[field]}"


def _other(architecture: str) -> str:
    """Where the other activation is."""
    plain = architecture.removesuffix(QUICK)
    other = plain if plain != architecture else plain + QUICK
    if other in open_clip.list_models():
        return f"take {other}"
    return 'take the other "quick_gelu", true or false, in a JSON of it'
