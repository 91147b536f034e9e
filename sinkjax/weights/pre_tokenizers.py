r"""How byte-level vocabularies split a text before they merge its bytes.

A GGUF file names its pre-tokenizer in `tokenizer.ggml.pre`. The regular
expressions are those of llama.cpp (src/llama-vocab.cpp), under its names: these
are names of vocabularies, which models of any architecture may have.
"""

_CASES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
# The last space of a run is left to the word that follows, whose token begins
# with it.
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
# Letters with case, as the vocabulary's authors list them: later versions of
# Unicode gave case to more letters.
_CASED = (
  "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4"
  "-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386"
  "\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-"
  "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-"
  "\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-"
  "\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
  "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6"
  "-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-"
  "\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
  "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
  "\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
  "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
  "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-"
  "\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
  "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-"
  "\U0001e943"
)
_LINES = r"[\r\n]"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
  _LINES,
  rf"\s?[{_CASED}]+",
  r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002]+",
  r"\s+\z",
  _CJK,
  r"\p{N}+",
)
_DEEPSEEK_CODER = (_LINES, r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
# Spaces of a power of two, longest first.
_JAIS2 = (
  _LLAMA3.removesuffix(r"|\s+(?!\S)|\s+")
  + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
  + r"|\s{1,2}(?!\S)|\s{1}"
)
_BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_CHAMELEON = (
  "<sentinel:[0-9]+>",
  "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
  r"([\t\n]|    |  )",
  r"\p{N}",
  r"[\p{P}!-/:-@\[-`{-~]",
  _GPT2,
)
_VIKING = (_BLOOM, r"\p{N}")
# Digits in threes from the right: what follows is a whole number of threes. The
# first of them stays with the text in front, as in llama.cpp.
_THREES = r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_SUPERBPE = (r"\p{N}+", r"(?=(\d{3})+(?!\d))")
_BAILING = (
  "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
  r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = _QWEN2.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
_EXAONE_MOE = (
  _CASES + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_MINICPM5 = (r"\p{N}{1,3}", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+"))
_SPARK = (
  *_DEEPSEEK3[:2],
  _PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
  r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
  r"\p{N}",
)
_ASIAN = (
  "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff"
  "\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff"
  "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
# With marks on letters, and without telling cases apart, as llama.cpp reads
# its own classes of upper and lower case.
_ANY_CASE = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+" + _CASES + "?"
_YOUTU = (
  "[\uac00-\ud7a3\u3131-\u318e]+"
  "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
  "\u3001-\u303f\ufe30-\ufe4f]+"
  "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
  _ANY_CASE + r"|\p{N}" + _MARKS + _TAIL,
)
_TINY_AYA = (_THREES, _ANY_CASE + r"|\p{N}{1,3}" + _MARKS + _TAIL)
_GRANITE = _GPT4O.replace(r"(?=[\p{L}])", r"(?=[\p{L}\p{M}])")
_NOT_HAN = r"[\p{L}&&[^\p{Han}]]"
_KIMI = (
  r"\p{Han}+|[^\r\n\p{L}\p{N}]?" + _NOT_HAN + "+" + _CASES + r"?|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
)

PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
  name: regexes
  for names, regexes in (
    ("default", _DEFAULT),
    ("falcon", _FALCON),
    (
      "gpt-2 phi-2 mpt olmo jais trillion gigachat mellum a.x-4.0 exaone4 "
      "granite-docling roberta-bpe modern-bert jina-es jina-de jina-v1-en "
      "jina-v2-es jina-v2-de jina-v2-code",
      (_GPT2,),
    ),
    (
      "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
      (r"\p{N}", _GPT2),
    ),
    (
      "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 "
      "dbrx smaug-bpe chatglm-bpe glm4 glm5 jina-v5-nano",
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
    ("granite-embed-multi-97m", (_GRANITE,)),
    ("deepseek-llm", _DEEPSEEK_LLM),
    ("deepseek-coder", _DEEPSEEK_CODER),
    ("jais-2", (_JAIS2,)),
    ("poro-chat bloom gpt3-finnish", (_BLOOM,)),
    ("viking", _VIKING),
    ("chameleon", _CHAMELEON),
    ("tiny_aya cohere2moe", _TINY_AYA),
    ("kimi-k2", (_KIMI,)),
    ("superbpe", _SUPERBPE),
    ("bailingmoe bailingmoe2 llada-moe", (_BAILING,)),
    ("seed-coder", (_SEED,)),
    ("ufakzeka", (_QWEN2.removeprefix(_CASES + "|"),)),
    ("afmoe", (_THREES, _ASIAN, _DEEPSEEK3[2])),
    ("laguna", (r"[^\n]+|[\n]+", _QWEN2)),
    ("exaone-moe", (_EXAONE_MOE,)),
    ("minicpm5", _MINICPM5),
    ("spark2_5", _SPARK),
    ("youtu", _YOUTU),
  )
  for name in names.split()
}
"""The regular expressions that split a text, one after the other."""

_LLAMA3_NAMES = [
  "llama-bpe",
  "llama3",
  "llama-v3",
  "falcon3",
  "falcon-h1",
  "pixtral",
  "midm-2.0",
  "lfm2",
  "jina-v5-nano",
  "tekken",
]
ADD_BOS = frozenset([*_LLAMA3_NAMES, "chameleon"])
"""With these, BOS comes first unless the file says otherwise."""
WHOLE_WORDS = frozenset(
  [
    *_LLAMA3_NAMES,
    *["glm4", "glm5", "youtu", "minicpm5", "granite-embed-multi-97m"],
  ]
)
"""With these, a whole word that is a token is taken as it is, merges or not."""

_LINE_ENDS = r"\n+"
CHARACTERS = {
  "gemma4": _LINE_ENDS,
  "granite-embed-multi-311m": _LINE_ENDS,
  "sarvam-moe": _LINE_ENDS,
  "whitespace": r"\s+",
}
"""llama.cpp's names of vocabularies that merge characters in place of bytes,
and what stands apart from the rest before they do."""

SPACES_STAY = frozenset(["whitespace"])
"""With these, spaces are not escaped. The vocabulary that has that name, of
models that embed texts, has no token for them: they get no ids at all."""
