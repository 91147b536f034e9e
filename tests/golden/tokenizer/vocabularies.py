"""Small vocabularies of the tokenizer tests, as a GGUF file holds them."""

import io
import json
import random

USER = ["<|tool|>", "\n\n"]
GEMMA = ["\n" * n for n in range(1, 6)] + ["<b>", "</b>", "<td>", "[@BOS@]"]
GEMMA_SPACES = ["▁" * n for n in range(2, 9)]
NORMAL, UNKNOWN, CONTROL_TYPE, USER_DEFINED, _, BYTE = range(1, 7)


def sentencepiece_model(texts, **more) -> bytes:
  """A small BPE model with byte fallback and no normalization."""
  import sentencepiece as spm

  lines = [line for text in texts for line in text.split("\n")]
  model = io.BytesIO()
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(
      line for line in lines if max(line, default=" ") < "\u0180"
    ),
    model_writer=model,
    model_type="bpe",
    vocab_size=800,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
    allow_whitespace_only_pieces=True,
    max_sentence_length=9999,
    num_threads=1,
    character_coverage=1.0,
    minloglevel=2,
    **more,
  )
  return model.getvalue()


def sentencepiece_metadata(model: bytes) -> dict:
  """A vocabulary as a GGUF file holds it."""
  import sentencepiece as spm
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  kinds = [piece.type for piece in proto.pieces]
  user = [
    piece.piece if piece.type == USER_DEFINED else "" for piece in proto.pieces
  ]
  processor = spm.SentencePieceProcessor(model_proto=model)
  return {
    "tokenizer.ggml.model": "llama",
    # As in converted files, spaces of user-defined tokens are spaces.
    "tokenizer.ggml.tokens": [
      user[i].replace("▁", " ") or piece.piece
      for i, piece in enumerate(proto.pieces)
    ],
    "tokenizer.ggml.scores": [piece.score for piece in proto.pieces],
    "tokenizer.ggml.token_type": kinds,
    "tokenizer.ggml.bos_token_id": processor.bos_id(),
    "tokenizer.ggml.eos_token_id": processor.eos_id(),
    "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
  }


def shuffled(metadata: dict) -> dict:
  """The same pieces, merged in another order than that of their ids."""
  scores = metadata["tokenizer.ggml.scores"]
  order = random.Random(0).sample(range(len(scores)), len(scores))
  return metadata | {"tokenizer.ggml.scores": [-float(i) for i in order]}


def unspaced(metadata: dict) -> dict:
  """As in some converted files: spaces of user-defined tokens are "▁"."""
  tokens = metadata["tokenizer.ggml.tokens"]
  tokens = [token.replace(" ", "▁") for token in tokens]
  return metadata | {"tokenizer.ggml.tokens": tokens}


def byte_level_metadata(texts: list[str]) -> dict:
  """Byte-level BPE of whole texts; some words that no merge makes."""
  import tokenizers
  from tokenizers import models, pre_tokenizers, trainers

  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
  trainer = trainers.BpeTrainer(
    vocab_size=880,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  backend.train_from_iterator((t for t in texts if "<|" not in t), trainer)
  model = json.loads(backend.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  whole = ["Ġneighbour", "jumps", "doesn", "Ġradiator", "123", "æĹ¥", "Ġé"]
  whole = [token for token in whole if token not in tokens]
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  tokens += [*whole, "<|tool|>", *special]
  kinds = [NORMAL] * len(tokens)
  kinds[-4:] = [USER_DEFINED, *[CONTROL_TYPE] * 3]
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": kinds,
    "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
    "tokenizer.ggml.bos_token_id": tokens.index("<|im_start|>"),
    "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
  }
