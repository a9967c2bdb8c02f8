"""A folder as sentence-transformers writes it: a BERT of two layers with seeded random weights."""

from pathlib import Path

import torch

WORDS = "a the red blue circle dog dogs two asleep on sofa invoice word"
POSITIONS = 16


def write_sentences(folder: Path) -> Path:
    """Into a folder that is not there yet; its model knows `WORDS`, and letters."""
    # Slow to import, and only few tests want them.
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel, BertTokenizer

    bert = folder.with_name("bert")
    bert.mkdir()
    letters = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + [*"abcdefghijklmnopqrs"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *letters]
    vocabulary = list(dict.fromkeys(tokens))
    (bert / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(bert / "vocab.txt")).save_pretrained(bert)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
    )
    model = BertModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(bert)
    transformer = modules.Transformer(str(bert), max_seq_length=POSITIONS)
    SentenceTransformer(modules=[transformer, modules.Pooling(32)]).save(str(folder))
    return folder
