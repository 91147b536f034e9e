"""Architectures that are not read, by their `model_type`, with what to do.

`refuse` says what a model is from its config alone. A name that is listed
nowhere is an "unknown model_type"; the lists are of published models.
"""

from collections.abc import Mapping
from typing import Any

from sinkjax.weights import families
from sinkjax.weights.validate import WeightsError

_OTHER = "take a decoder with attention in every layer"
_ENCODER = f"attention sinks are those of causal attention: {_OTHER}"

_KINDS = {
  ("a state-space model, whose layers have no attention", _OTHER): (
    "falcon_mamba mamba mamba2 rwkv rwkv5 rwkv6 rwkv6qwen2 rwkv7 arwkv7 xlstm"
  ),
  (
    "a hybrid of attention with state-space or linear layers",
    f"those have no pattern to measure: {_OTHER}",
  ): (
    "bamba falcon_h1 granitemoehybrid granitehybrid jamba kimi_linear lfm2 "
    "lfm2_moe minimax minimax_m1 nemotron_h olmo_hybrid plamo2 qwen3_5 "
    "qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma "
    "zamba zamba2"
  ),
  ("an encoder, whose attention is not causal", _ENCODER): (
    "albert bert camembert convbert deberta deberta-v2 distilbert electra "
    "ernie esm eurobert jina_bert jina_bert_v2 mobilebert modernbert mpnet "
    "nomic_bert nomic_bert_moe rembert roberta xlm xlm-roberta xlnet"
  ),
  ("an encoder with a decoder", _ENCODER): (
    "bart blenderbot led longt5 m2m_100 marian mbart mt5 nllb-moe pegasus "
    "prophetnet switch_transformers t5 t5encoder t5gemma umt5 whisper"
  ),
  (
    "a vision or audio model",
    "take a language model: what is measured is text's attention",
  ): (
    "beit clip clip_text_model clip_vision_model convnext data2vec-vision deit "
    "dinov2 dinov3_vit hubert siglip siglip2 siglip_vision_model swin vit "
    "wav2vec2 wavlm"
  ),
}

_WRAPPED = (
  "aria aya_vision blip-2 chameleon cohere2_vision deepseek_vl deepseek_vl_v2 "
  "emu3 fuyu gemma4 glm46v glm4v glm4v_moe got_ocr2 idefics idefics2 idefics3 "
  "instructblip internvl internvl_chat janus kimi_k25 kimi_vl kosmos-2 lfm2_vl "
  "llama4 llava llava_next llava_next_video llava_onevision minicpmo minicpmv "
  "mistral3 mllama molmo multi_modality ovis2 paligemma phi3_v "
  "phi4_multimodal phi4mm qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_vl "
  "qwen3_omni_moe qwen3_vl qwen3_vl_moe smolvlm ultravox video_llava vipllava "
  "voxtral"
)
_WRAPPERS = _WRAPPED.split()
"""Models of text with images or sound, around a decoder."""

_INNER = ("text_config", "language_config", "llm_config", "thinker_config")
_TOWERS = ("vision_config", "audio_config", "visual")

_DECODERS = {
  "arctic": ("Arctic, a dense decoder beside experts", "mixtral"),
  "baichuan": ("Baichuan, by code of its own repository", "llama"),
  "bitnet": ("BitNet, with weights of three values", "llama"),
  "chatglm": ("ChatGLM or GLM 4 by code of its own repository", "glm4"),
  "codegen": ("CodeGen, with queries, keys and values in blocks", "gptj"),
  "cohere2_moe": ("Command with experts", "cohere2"),
  "ctrl": ("CTRL, with sinusoidal positions", "gpt2"),
  "dbrx": ("DBRX, with fused experts", "mixtral"),
  "deepseek": ("DeepSeek MoE, with shared experts", "deepseek_v3"),
  "deepseek_v2": ("DeepSeek V2, the model before V3", "deepseek_v3"),
  "deepseek_v32": ("DeepSeek V3.2, with sparse attention", "deepseek_v3"),
  "deepseek_v4": ("DeepSeek V4", "deepseek_v3"),
  "dots1": ("dots.llm1, with experts", "qwen3_moe"),
  "ernie4_5": ("ERNIE 4.5", "llama"),
  "ernie4_5_moe": ("ERNIE 4.5 with experts", "qwen2_moe"),
  "exaone": ("EXAONE 3, by code of its own repository", "exaone4"),
  "flex_olmo": ("FlexOlmo, with experts", "olmoe"),
  "gemma3n": (
    "Gemma 3n, with several residual streams and embeddings in every layer",
    "gemma3_text",
  ),
  "gemma3n_text": ("the language model of Gemma 3n", "gemma3_text"),
  "gemma4_text": ("the language model of Gemma 4", "gemma3_text"),
  "glm": ("GLM 4 of 2024", "glm4"),
  "glm4_moe": ("GLM 4.5, with experts", "glm4"),
  "glm_moe_dsa": ("GLM 5, with sparse attention", "glm4"),
  "gpt_neox_japanese": ("GPT-NeoX Japanese", "gpt_neox"),
  "granitemoe": ("Granite with experts", "granite"),
  "granitemoeshared": ("Granite with shared experts", "granite"),
  "grok": ("Grok 1, with experts", "mixtral"),
  "hunyuan_v1_dense": ("Hunyuan", "llama"),
  "hunyuan_v1_moe": ("Hunyuan with experts", "mixtral"),
  "internlm": ("InternLM 1, by code of its own repository", "llama"),
  "internlm2": (
    "InternLM 2, a Llama with fused queries, keys and values",
    "llama",
  ),
  "internlm3": ("InternLM 3", "llama"),
  "jais": ("Jais, by code of its own repository", "gpt2"),
  "jetmoe": ("JetMoE, with experts of attention", "mixtral"),
  "llama4_text": ("the language model of Llama 4, with experts", "llama"),
  "minicpm": ("MiniCPM, a Llama with scaled branches", "llama"),
  "minicpm3": ("MiniCPM 3, with latent attention", "deepseek_v3"),
  "minimax_m2": ("MiniMax M2, with experts", "qwen3_moe"),
  "ministral3": ("Ministral 3, with scaled queries", "ministral"),
  "mistral4": ("Mistral 4", "mistral"),
  "mllama_text_model": (
    "the language model of Llama 3.2 Vision, which attends to images",
    "llama",
  ),
  "nanochat": ("nanochat", "llama"),
  "openai-gpt": ("GPT 1, with norms behind its branches", "gpt2"),
  "openelm": ("OpenELM, with other widths in each layer", "llama"),
  "persimmon": ("Persimmon", "gpt_neox"),
  "phi3small": ("Phi-3 small, with block-sparse attention", "phi3"),
  "phimoe": ("Phi-3.5 with experts", "phi3"),
  "qwen": ("Qwen 1, by code of its own repository", "qwen2"),
  "qwen2_5_vl_text": ("the language model of Qwen 2.5 VL", "qwen2"),
  "qwen2_vl_text": ("the language model of Qwen 2 VL", "qwen2"),
  "qwen3_vl_moe_text": ("the language model of Qwen 3 VL", "qwen3_moe"),
  "qwen3_vl_text": ("the language model of Qwen 3 VL", "qwen3"),
  "stablelm_epoch": ("StableLM by code of its own repository", "stablelm"),
  "xglm": ("XGLM, with sinusoidal positions", "opt"),
}
"""{decoder: (what it is, the family that is read and nearest to it)}."""


def _plain(name: Any) -> str:
  """A name without what config.json and GGUF files spell differently."""
  if not isinstance(name, str):
    return ""
  return name.replace("_", "").replace("-", "").replace(".", "").lower()


_TEXT_ALONE = "take a model of text alone"
_LIST = "python -m launch.analyze --list_models prints all"

KINDS = {
  name: (kind, f"{advice}; {_LIST}")
  for (kind, advice), names in _KINDS.items()
  for name in names.split()
} | {
  name: (
    f"{what}, a decoder that is not read",
    f"the family {near} is read, and nearest to it; {_LIST}",
  )
  for name, (what, near) in _DECODERS.items()
}
"""{model_type: (what it is, what to do)}, without `_WRAPPERS`."""

_BY_PLAIN = {_plain(name): kind for name, kind in KINDS.items()}
_PLAIN_WRAPPERS = {_plain(name) for name in _WRAPPERS}


def reason(model_type: object) -> str | None:
  """Why a model of that type cannot be read, `None` where it is not listed.

  Args:
    model_type: of a `config.json`, or an architecture of a GGUF file.

  >>> reason("mamba").split(":")[0]
  'a state-space model, whose layers have no attention'
  """
  if _plain(model_type) in _PLAIN_WRAPPERS:
    return f"a model of text with images or sound: {_TEXT_ALONE}; {_LIST}"
  found = _BY_PLAIN.get(_plain(model_type))
  return None if found is None else ": ".join(found)


def refuse_wrapper(values: Mapping[str, Any], where: str) -> None:
  """Refuses a model of text with images or sound, by its `config.json`.

  Args:
    values: the parsed file.
    where: the file, for messages.

  Raises:
    WeightsError: naming the model, its language model, and what to do.
  """
  kind = values.get("model_type")
  if not isinstance(kind, str) or families.find(kind) is not None:
    return
  inner = next((k for k in _INNER if isinstance(values.get(k), dict)), None)
  listed = _plain(kind) in _PLAIN_WRAPPERS
  if inner is None and not listed and not any(k in values for k in _TOWERS):
    return
  if _plain(kind) in _BY_PLAIN:  # a vision model may have a text_config, too
    return
  text = values[inner].get("model_type") if inner else None
  said = f"{where}: {kind!r:.80} is a model of text with images or sound"
  if families.find(text) is not None:
    raise WeightsError(
      f"{said} around a {text!r}: save that language model alone, with "
      f"transformers, m being the model: t = AutoModelForCausalLM.from_config("
      f"m.config.{inner}); t.model, t.lm_head = m.model.language_model, "
      "m.lm_head; t.save_pretrained(FOLDER)"
    )
  why = reason(text)
  within = (
    f" around {text!r:.80}, {why}" if why else f": {_TEXT_ALONE}; {_LIST}"
  )
  raise WeightsError(f"{said}{within}")


def refuse(model_type: Any, where: str) -> None:
  """Refuses a type that is listed, or that is unknown.

  Raises:
    WeightsError: always, with what the model is and what to do.
  """
  why = reason(model_type)
  if why is not None:
    raise WeightsError(f"{where}: {model_type!r} is {why}")
  raise WeightsError(
    f"{where}: unknown model_type {model_type!r:.80}; "
    "python -m launch.analyze --list_models prints those that are read"
  )
