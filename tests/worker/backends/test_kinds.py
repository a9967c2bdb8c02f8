"""Other kinds than CLIP, small, with seeded weights: SigLIP, CoCa, MobileCLIP and EVA."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data

from api_client.wire.errors import WeightsUnavailable
from api_client.wire.messages import Kind
from worker.backends import hub
from worker.backends.base import Placement
from worker.backends.openclip import OpenClip
from worker.catalogue import Entry

PHOTOS = [Image.fromarray(make()) for make in (data.astronaut, data.coffee, data.rocket)]
TEXTS = ["A red circle!", "two dogs, asleep on a sofa", "", "word " * 40]
WORDS = ("a", "red", "circle", "two", "dogs", "asleep", "on", "sofa", "word")
SIGLIP = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit3", "timm_proj": "linear"},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}
VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
COCA = {
    "embed_dim": 32,
    "custom_text": True,
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    "vision_cfg": {
        **VISION,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
}
MOBILE = {
    "embed_dim": 32,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "fastvit_mci0",
        "timm_pool": "avg",
        "timm_proj": None,
        "timm_model_pretrained": False,
    },
    "text_cfg": {**TEXT, "no_causal_mask": True},
}
# The text tower of EVA-02: a part by itself, else CLIP's.
EVA = {"embed_dim": 32, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT}
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def folder(path, model):
    """As open_clip writes a model: config and weights, the latter random."""
    config = {"model_cfg": model, "preprocess_cfg": PREPROCESS}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(7)
    kind = open_clip.CoCa if "multimodal_cfg" in model else open_clip.CustomTextCLIP
    made = kind(**{name: value for name, value in model.items() if name != "custom_text"})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(made.state_dict(), path / "open_clip_model.safetensors")
    return path


def loaded(path, cache, offline=True):
    entry = Entry(
        "mine/siglip",
        architecture=str(path / "open_clip_config.json"),
        checkpoint=path / "open_clip_model.safetensors",
    )
    return OpenClip(Placement(cache_dir=cache, offline=offline)).load(entry)


def lowest_cosine(rows, others):
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    return ((rows * others).sum(1) / norms).min()


@pytest.mark.parametrize(
    ("shape", "positions"),
    [(SIGLIP, {0}), (COCA, {0}), (MOBILE, {0}), (EVA, {2, 6, 9, 20})],
    ids=["siglip", "coca", "mobileclip", "eva"],
)
def test_it_answers_as_open_clip_does(tmp_path, shape, positions):
    path = folder(tmp_path, shape)
    model = loaded(path, tmp_path / "cache")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{path}")
    theirs.eval()
    with torch.inference_mode():
        images = theirs.encode_image(torch.stack([transform(photo) for photo in PHOTOS]))
        texts = theirs.encode_text(tokenizer(TEXTS))
    rows = model.run(Kind.IMAGE, [model.prepare_image(photo) for photo in PHOTOS])
    assert lowest_cosine(rows, images.numpy()) >= 0.99999
    prepared = [model.prepare_text(text) for text in TEXTS]
    rows = np.concatenate([model.run(Kind.TEXT, [one]) for one in prepared])
    assert lowest_cosine(rows, texts.numpy()) >= 0.99999
    assert {one.length for one in prepared} == positions


def tokenizer_files(path):
    """As Hugging Face's library writes them; the number of words that they know."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    return len(vocabulary)


def test_texts_of_siglip_go_through_the_tokenizer_beside_its_config(tmp_path):
    size = tokenizer_files(tmp_path)
    text = {**SIGLIP["text_cfg"], "vocab_size": size, "hf_tokenizer_name": "mine"}
    text["tokenizer_kwargs"] = {"clean": "canonicalize"}
    path = folder(tmp_path, {**SIGLIP, "text_cfg": text})
    model = loaded(path, tmp_path / "cache")
    theirs = open_clip.create_model_and_transforms(f"local-dir:{path}")[0].eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{path}")
    with torch.inference_mode():
        want = theirs.encode_text(tokenizer(TEXTS))
    prepared = [model.prepare_text(text) for text in TEXTS]
    assert lowest_cosine(model.run(Kind.TEXT, prepared), want.numpy()) >= 0.99999
    assert [one.truncated for one in prepared] == [False, False, False, True]

    file = path / "tokenizer.json"
    file.write_text(file.read_text().replace('"circle"', '"square"'))
    assert loaded(path, tmp_path / "cache").traits.fingerprint != model.traits.fingerprint


def downloaded(cache, name):
    """A config whose tokenizer an earlier download left in the cache, and where it lies."""
    download, commit = cache / f"hub/models--{name.replace('/', '--')}", "a" * 40
    for folders in ("refs", f".no_exist/{commit}"):
        (download / folders).mkdir(parents=True)
    (download / "refs/main").write_text(commit)
    (download / f".no_exist/{commit}/config.json").touch()  # the hub had none
    files = download / "snapshots" / commit
    text = {**SIGLIP["text_cfg"], "vocab_size": tokenizer_files(files), "hf_tokenizer_name": name}
    return {**SIGLIP, "text_cfg": text}, files


def test_files_of_an_earlier_download_are_used_while_the_hub_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "FORBIDDEN", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    config, _ = downloaded(tmp_path / "cache", "mine/words")
    path = folder(tmp_path, config)
    assert not loaded(path, tmp_path / "cache", offline=False).prepare_text("a circle").truncated
    with pytest.raises(WeightsUnavailable, match=r"to come from 127\.0\.0\.1, which is away"):
        loaded(path, tmp_path / "another", offline=False)
    assert not hub.constants.HF_HUB_OFFLINE  # for whoever asks the hub next


def test_another_revision_of_a_tokenizer_is_another_space(tmp_path):
    config, files = downloaded(tmp_path / "cache", "mine/words")
    path = folder(tmp_path, config)
    before = loaded(path, tmp_path / "cache").traits.fingerprint
    assert loaded(path, tmp_path / "cache").traits.fingerprint == before
    file = files / "tokenizer.json"
    file.write_text(file.read_text().replace('"circle"', '"square"'))
    assert loaded(path, tmp_path / "cache").traits.fingerprint != before


def test_a_tokenizer_in_a_folder_that_the_config_names_is_part_of_the_space(tmp_path):
    size = tokenizer_files(tmp_path / "words")
    text = {**SIGLIP["text_cfg"], "vocab_size": size, "hf_tokenizer_name": str(tmp_path / "words")}
    path = folder(tmp_path, {**SIGLIP, "text_cfg": text})
    before = loaded(path, tmp_path / "cache").traits.fingerprint
    file = tmp_path / "words/tokenizer.json"
    file.write_text(file.read_text().replace('"circle"', '"square"'))
    assert loaded(path, tmp_path / "cache").traits.fingerprint != before


def test_code_that_comes_with_a_tokenizer_is_not_run_even_if_the_models_config_trusts_it(tmp_path):
    text = {**SIGLIP["text_cfg"], "vocab_size": tokenizer_files(tmp_path)}
    text |= {"hf_tokenizer_name": "mine", "tokenizer_kwargs": {"trust_remote_code": True}}
    path, ran = folder(tmp_path, {**SIGLIP, "text_cfg": text}), tmp_path / "ran"
    (path / "own.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    config = path / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    config.write_text(json.dumps(json.loads(config.read_text()) | own))
    with pytest.raises(WeightsUnavailable, match=r"no tokenizer for .* contains custom code"):
        loaded(path, tmp_path / "cache")
    assert not ran.exists()
