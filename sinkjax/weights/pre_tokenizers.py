r"""How byte-level vocabularies split a text before they merge its bytes.

A GGUF file names its pre-tokenizer in `tokenizer.ggml.pre`. The regular
expressions are those of llama.cpp (src/llama-vocab.cpp), under its names: these
are names of vocabularies, which models of any architecture may have.
"""

_CASES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
)
_LLAMA3 = (
  _CASES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = (
  _CASES + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
  r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _TAIL
)
_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK3 = (
  r"\p{N}{1,3}",
  "[一-龥\u3040-ゟ゠-ヿ]+",
  _PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
  r"| ?[\p{P}\p{S}]+[\r\n]*|" + _TAIL,
)
_LOWER = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
_UPPER = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
_TEKKEN = _LOWER + "|" + _UPPER + r"|\p{N}" + _MARKS + _TAIL
_GPT4O = (
  _LOWER + _CASES + "?|" + _UPPER + _CASES + r"?|\p{N}{1,3}" + _MARKS + _TAIL
)
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
  name: regexes
  for names, regexes in (
    ("default", _DEFAULT),
    ("falcon", _FALCON),
    (
      "gpt-2 phi-2 mpt olmo jais trillion gigachat mellum a.x-4.0 exaone4 "
      "granite-docling roberta-bpe",
      (_GPT2,),
    ),
    (
      "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
      (r"\p{N}", _GPT2),
    ),
    (
      "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 "
      "dbrx smaug-bpe chatglm-bpe glm4 glm5",
      (_LLAMA3,),
    ),
    (
      "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open "
      "megrez grok-2",
      (_QWEN2,),
    ),
    ("qwen35", (_QWEN35,)),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _DEEPSEEK3),
    ("tekken", (_TEKKEN,)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", (_GPT4O,)),
  )
  for name in names.split()
}
"""The regular expressions that split a text, one after the other."""

ADD_BOS = frozenset(
  [
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
  ]
)
"""With these, BOS comes first unless the file says otherwise."""
WHOLE_WORDS = ADD_BOS | {"glm4", "glm5"}
"""With these, a whole word that is a token is taken as it is, merges or not."""
