"""The library itself is the yardstick: the same folder, the same texts, the same vectors.

It is imported where it is used: seven seconds that a process without these tests does without.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from api_client.wire.errors import BackendFailed, BadCheckpoint, LoadFailed, WeightsUnavailable
from api_client.wire.messages import Kind
from tests.worker.backends.tiny_sentences import write_sentences
from worker.backends.base import Placement
from worker.backends.check import Subject, pytest_generate_tests  # noqa: F401
from worker.backends.registry import Families
from worker.backends.simple import SimpleBackend
from worker.catalogue import Entry

TEXTS = ["a red circle", "two dogs asleep on a sofa", "", "word " * 100]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sentences(tmp_path_factory.mktemp("sentences") / "tiny")


@pytest.fixture
def family():
    from worker.backends.sentence_transformers import SentenceTransformers

    return SimpleBackend(SentenceTransformers, Placement(offline=True))


@pytest.fixture
def entry(folder):
    return Entry("mine/tiny", checkpoint=folder, kinds=(Kind.TEXT,))


def test_it_answers_as_the_library_does(family, entry, folder):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu")
    want = theirs.encode(TEXTS, normalize_embeddings=True)
    model = family.load(entry)
    rows = model.run(Kind.TEXT, [model.prepare_text(text) for text in TEXTS])
    cosines = (rows * want).sum(1) / np.linalg.norm(rows, axis=1)
    assert cosines.min() >= 0.99999
    assert model.traits.dimension == 32


def test_it_keeps_the_contract(clipyard_check, family, entry):
    clipyard_check(Subject(family, entry, Placement(offline=True)))


def test_a_text_over_the_context_is_truncated_and_said_to_be(family, entry):
    model = family.load(entry)
    assert [model.prepare_text(text).truncated for text in TEXTS] == [False, False, False, True]


def test_a_text_is_as_long_as_what_is_computed_of_it(family, entry):
    model = family.load(entry)
    lengths = [model.prepare_text("word " * words).length for words in (1, 4, 99)]
    assert lengths == [3, 6, 16]


def test_a_default_prompt_makes_another_space_and_counts_for_the_context(
    family, entry, folder, tmp_path
):
    shutil.copytree(folder, tmp_path / "prompted")
    config = tmp_path / "prompted" / "config_sentence_transformers.json"
    given = {"prompts": {"query": "dogs asleep "}, "default_prompt_name": "query"}
    config.write_text(json.dumps(json.loads(config.read_text()) | given))
    models = family.load(entry), family.load(replace(entry, checkpoint=config.parent))
    assert models[0].traits.fingerprint != models[1].traits.fingerprint
    nearly_full = "word " * 13
    assert [model.prepare_text(nearly_full).truncated for model in models] == [False, True]


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("tokenizer.json", '"red":', '"rad":'),
        ("tokenizer_config.json", '"model_max_length":16', '"model_max_length":4'),
        ("config.json", '"hidden_act":"gelu"', '"hidden_act":"relu"'),
        ("1_Pooling/config.json", '"pooling_mode":"mean"', '"pooling_mode":"cls"'),
    ],
)
def test_the_same_weights_used_otherwise_are_another_space(
    family, entry, folder, tmp_path, file, before, after
):
    changed = Path(shutil.copytree(folder, tmp_path / "changed")) / file
    said = json.dumps(json.loads(changed.read_text()), separators=(",", ":"))
    assert before in said
    changed.write_text(said.replace(before, after))
    models = family.load(entry), family.load(replace(entry, checkpoint=tmp_path / "changed"))
    [row], [other] = (
        model.run(Kind.TEXT, [model.prepare_text("A red dog asleep on a sofa")]) for model in models
    )
    assert not np.allclose(row, other)
    assert models[0].traits.fingerprint != models[1].traits.fingerprint


def test_a_copy_of_a_folder_is_in_its_space(family, entry, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "README.md").write_text("another")
    models = family.load(entry), family.load(replace(entry, checkpoint=copy))
    assert models[0].traits.fingerprint == models[1].traits.fingerprint


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_the_estimate_goes_by_the_precision_and_not_by_the_files(
    entry, folder, tmp_path, precision, stored
):
    from worker.backends.sentence_transformers import SentenceTransformers

    file = Path(shutil.copytree(folder, tmp_path / "copy")) / "model.safetensors"
    state = {name: tensor.to(stored) for name, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    family = SimpleBackend(SentenceTransformers, Placement(offline=True, precision=precision))
    found = replace(entry, checkpoint=file.parent)
    held = family.load(found).footprint().host_bytes
    assert 0.98 * held <= family.check(found) <= held
    file.write_bytes(file.read_bytes()[:99])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors is truncated or corrupt"):
        family.check(found)


def without(folder, copy, part):
    """A copy of the folder whose weights lack those with `part` in their names."""
    file = Path(shutil.copytree(folder, copy)) / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if part not in name}
    save_file(state, file, metadata={"format": "pt"})
    return copy


def test_weights_that_no_vector_needs_may_be_missing_and_each_load_is_the_same_space(
    family, entry, folder, tmp_path
):
    lacking = replace(entry, checkpoint=without(folder, tmp_path / "poolerless", "pooler"))
    models = family.load(lacking), family.load(lacking)
    assert models[0].traits.fingerprint == models[1].traits.fingerprint
    rows, others = (
        model.run(Kind.TEXT, [model.prepare_text(text) for text in TEXTS])
        for model in (models[0], family.load(entry))
    )
    assert np.array_equal(rows, others)


def test_two_networks_that_lack_the_same_are_the_same_space_with_each_load(
    family, entry, folder, tmp_path
):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    lacking = str(without(folder, tmp_path / "poolerless", "pooler"))
    ways = [[modules.Transformer(lacking), modules.Pooling(32)] for _ in range(2)]
    router = modules.Router.for_query_document(*ways)
    SentenceTransformer(modules=[router]).save(str(tmp_path / "two"))
    for file in (tmp_path / "two").rglob("*.safetensors"):
        state = {name: row for name, row in load_file(file).items() if "pooler" not in name}
        save_file(state, file, metadata={"format": "pt"})
    found = replace(entry, checkpoint=tmp_path / "two")
    assert len({family.load(found).traits.fingerprint for _ in range(2)}) == 1


def test_weights_that_vectors_need_are_never_drawn_at_random(family, entry, folder, tmp_path):
    lacking = without(folder, tmp_path / "lacking", "layer.1.attention.self.query")
    with pytest.raises(BadCheckpoint, match=r"not complete: .*query.*query\.bias missing"):
        family.load(replace(entry, checkpoint=lacking))


def test_whole_numbers_that_are_missing_are_never_made_up(entry, folder):
    from sentence_transformers import SentenceTransformer

    from worker.backends.sentence_transformers import SentenceTransformers

    module = SentenceTransformer(str(folder), device="cpu")
    whole = torch.zeros(32, 32, dtype=torch.int8)
    module[0].model.pooler.dense.weight = torch.nn.Parameter(whole, requires_grad=False)
    with pytest.raises(BadCheckpoint, match=r"not complete: .*pooler\.dense\.weight missing"):
        SentenceTransformers(entry, Placement(offline=True))._make_whole(module)


def test_modules_that_do_not_work_together_are_refused_once(entry, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    from worker.backends.sentence_transformers import SentenceTransformers

    parts = [modules.BoW(["red", "circle"]), modules.Dense(2, 8)]
    SentenceTransformer(modules=parts).save(str(tmp_path / "bag"))
    family = SimpleBackend(SentenceTransformers, Placement(offline=True, precision="bfloat16"))
    model = family.load(replace(entry, checkpoint=tmp_path / "bag"))
    with pytest.raises(LoadFailed, match=r"bag cannot embed a text: RuntimeError: .* same dtype"):
        model.lift()


def test_what_rounding_would_spoil_stays_as_the_library_leaves_it(folder, entry, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    from worker.backends.sentence_transformers import SentenceTransformers

    shape = T5Config(vocab_size=99, d_model=32, d_kv=16, num_heads=2, num_layers=2, d_ff=64)
    T5EncoderModel(shape).save_pretrained(tmp_path / "t5")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "t5")
    transformer = modules.Transformer(str(tmp_path / "t5"), max_seq_length=16)
    parts = [transformer, modules.Pooling(32), modules.Dense(32, 8)]
    SentenceTransformer(modules=parts).save(str(tmp_path / "st"))
    family = SimpleBackend(SentenceTransformers, Placement(offline=True, precision="float16"))
    model = family.load(replace(entry, checkpoint=tmp_path / "st"))
    types = {name: str(weights.dtype) for name, weights in model.module.named_parameters()}
    kept = {name for name, kind in types.items() if kind == "torch.float32"}
    assert kept == {name for name in types if ".wo." in name} != set()
    assert set(types.values()) == {"torch.float32", "torch.float16"}


def test_static_embeddings_have_no_context_that_could_cut_a_text(family, entry, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    theirs = SentenceTransformer(
        modules=[modules.StaticEmbedding(words, embedding_dim=8)], device="cpu"
    )
    theirs.save(str(tmp_path / "static"))
    model = family.load(replace(entry, checkpoint=tmp_path / "static"))
    rows = model.run(Kind.TEXT, [model.prepare_text(text) for text in ("a", "b")])
    assert np.allclose(rows, theirs.encode(["a", "b"]))


def test_a_list_of_words_counts_its_own(family, entry, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    words = WhitespaceTokenizer(["<pad>", "red", "circle", "dogs"], stop_words=set())
    embeddings = modules.WordEmbeddings(words, torch.eye(4, 8), max_seq_length=2)
    parts = [embeddings, modules.Pooling(8)]
    SentenceTransformer(modules=parts).save(str(tmp_path / "words"))
    model = family.load(replace(entry, checkpoint=tmp_path / "words"))
    texts = ["red circle", "dogs red circle"]
    prepared = [model.prepare_text(text) for text in texts]
    assert [(text.length, text.truncated) for text in prepared] == [(2, False), (2, True)]
    theirs = SentenceTransformer(str(tmp_path / "words"), device="cpu")
    assert np.allclose(model.run(Kind.TEXT, prepared), theirs.encode(texts))


def test_a_text_does_not_depend_on_its_neighbours_where_a_tokenizer_pads_in_front(
    family, entry, folder, tmp_path
):
    file = Path(shutil.copytree(folder, tmp_path / "copy")) / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    model = family.load(replace(entry, checkpoint=tmp_path / "copy"))
    prepared = [model.prepare_text(text) for text in TEXTS]
    alone = np.concatenate([model.run(Kind.TEXT, [text]) for text in prepared])
    np.testing.assert_allclose(model.run(Kind.TEXT, prepared), alone, atol=1e-5)


def test_a_network_that_looks_at_padding_gets_each_text_alone(family, entry, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    torch.manual_seed(7)
    known = ["<pad>", "red", "circle", "two", "dogs", "asleep"]
    words = WhitespaceTokenizer(known, stop_words=set())
    embeddings = modules.WordEmbeddings(words, torch.randn(6, 8))
    parts = [embeddings, modules.CNN(8, 4), modules.Pooling(12)]
    SentenceTransformer(modules=parts).save(str(tmp_path / "cnn"))
    looking, plain = family.load(replace(entry, checkpoint=tmp_path / "cnn")), family.load(entry)
    for model in (looking, plain):
        model.lift()
    assert looking.traits.max_batch == 1 < plain.traits.max_batch


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP of transformers', whose texts and pictures the library embeds."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [f"{letter}{end}" for letter in "abcdefghijklmnopqrst/.:" for end in ("", "</w>")]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [], model_max_length=99)
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32}
    text = {"vocab_size": len(tokens), "eos_token_id": len(tokens) - 1, "bos_token_id": 0}
    shape = CLIPConfig(
        text_config=small | text | {"intermediate_size": 32, "max_position_embeddings": 99},
        vision_config=small | {"intermediate_size": 32, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(7)
    CLIPModel(shape).save_pretrained(tmp_path / "clip")
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pictures, tokenizer).save_pretrained(tmp_path / "clip")
    transformer = modules.Transformer(str(tmp_path / "clip"))
    SentenceTransformer(modules=[transformer]).save(str(tmp_path / "st"))
    return tmp_path / "st"


def test_a_text_is_never_opened_as_a_picture(family, entry, clip_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    texts = ["a red circle", str(tmp_path / "a.png"), "http://127.0.0.1:1/a.png"]
    model = family.load(replace(entry, checkpoint=clip_folder))
    rows = model.run(Kind.TEXT, [model.prepare_text(text) for text in texts])
    theirs = SentenceTransformer(str(clip_folder), device="cpu")
    np.testing.assert_allclose(rows, theirs.encode([{"text": text} for text in texts]), atol=1e-6)


def test_a_tokenizer_without_its_files_is_not_one_without_words(family, entry, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for pattern in ("token*", "vocab*", "special*"):
        for file in copy.glob(pattern):
            file.unlink()
    with pytest.raises(WeightsUnavailable, match=r"copy lacks the words of its tokenizer: token"):
        family.load(replace(entry, checkpoint=copy))


@pytest.mark.parametrize(
    ("file", "wrong", "told"),
    [
        ("1_Pooling/config.json", {"embedding_dimension": 64}, "have 64 numbers, and they have 32"),
        ("config_sentence_transformers.json", {"truncate_dim": "x"}, "cannot be loaded: '<' not"),
        (
            "config_sentence_transformers.json",
            {"requirements": {"sentence_transformers": ">=99"}},
            "cannot be loaded: .* requires: .*99",
        ),
    ],
)
def test_a_mistake_in_a_folder_is_one_sentence(family, entry, folder, tmp_path, file, wrong, told):
    changed = Path(shutil.copytree(folder, tmp_path / "copy")) / file
    changed.write_text(json.dumps(json.loads(changed.read_text()) | wrong))
    with pytest.raises(LoadFailed, match=told):
        family.load(replace(entry, checkpoint=tmp_path / "copy")).lift()


def test_code_that_lies_in_a_folder_is_not_run(family, entry, folder, tmp_path):
    copy, ran = Path(shutil.copytree(folder, tmp_path / "copy")), tmp_path / "ran"
    (copy / "own.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    modules = json.loads((copy / "modules.json").read_text())
    modules[1]["type"] = "own.Pooling"
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(LoadFailed, match=r"module class 'own\.Pooling', which is not part of"):
        family.load(replace(entry, checkpoint=copy))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<html>", "truncated or corrupt, or nothing that torch opens"),
        (b"", "truncated or corrupt, or nothing that torch opens"),
        (b"cos\nsystem\n(Vtrue\ntR.", r"could run code \(os\.system\); save its state_dict as"),
    ],
)
def test_a_pickle_that_torch_does_not_open_is_one_sentence(
    family, entry, folder, tmp_path, content, told
):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    listed = json.loads((copy / "modules.json").read_text())
    kind = "sentence_transformers.sentence_transformer.modules.Dense"
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": kind}
    (copy / "modules.json").write_text(json.dumps([*listed, dense]))
    (copy / "2_Dense").mkdir()
    shape = {"in_features": 32, "out_features": 8, "bias": True}
    (copy / "2_Dense" / "config.json").write_text(json.dumps(shape))
    (copy / "2_Dense" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=rf"^a \.bin of .*copy .*{told}") as refused:
        family.load(replace(entry, checkpoint=copy))
    assert "weights_only" not in str(refused.value)


def test_an_older_library_is_refused_by_its_version(monkeypatch):
    monkeypatch.setattr("sentence_transformers.__version__", "5.1.2")
    monkeypatch.delitem(sys.modules, "worker.backends.sentence_transformers", raising=False)
    families = Families(Placement(offline=True))
    with pytest.raises(BackendFailed, match=r"needs sentence-transformers 6 or newer, and 5\.1\.2"):
        families["sentence_transformers"]


def test_a_folder_that_is_none_is_unavailable(family, entry, tmp_path):
    for step in (family.check, family.load):
        with pytest.raises(WeightsUnavailable, match="is no folder of sentence-transformers"):
            step(replace(entry, checkpoint=tmp_path))


def test_a_name_of_the_hub_is_unavailable_offline(tmp_path):
    families = Families(Placement(offline=True, cache_dir=tmp_path))
    described = families.describe("sentence_transformers/all-MiniLM-L6-v2")
    assert described is not None
    with pytest.raises(WeightsUnavailable, match="offline is set; name a folder"):
        families.load(described)


def test_a_name_that_no_hub_has_leads_into_no_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    families = Families(Placement(offline=True))
    for name in (folder, "../tiny", ".", "./", "a/../../tiny", ""):
        assert families.describe(f"sentence_transformers/{name}") is None
    monkeypatch.chdir(folder.parent.parent)
    below = folder.relative_to(folder.parent.parent)
    assert families.describe(f"sentence_transformers/{below}") is None
