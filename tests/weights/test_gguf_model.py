"""GGUF models: the parameters of the Hugging Face folder they came from."""

import math
import pathlib
import sys

import gguf
import jax
import numpy as np
import pytest
from quick import quick
from safetensors.numpy import load_file

import sinkjax
from sinkjax.weights import huggingface
from sinkjax.weights.gguf_model import load_gguf, load_header
from sinkjax.weights.validate import WeightsError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from golden_models import FAMILIES, GGUF, write_gguf

# Their files store neither the scale of scores nor the layers' kinds.
PARTIAL = ("gemma2", "gemma3")
# Fields that llama.cpp's files have no key of: it computes with the same for
# every model of the architecture.
UNTOLD = {
  "gpt_oss": {"mlp_clamp": 7.0},
  "olmoe": {"norm_topk": False, "qkv_clip": None},
  "smollm3": {"rope_layers": ()},
  "mpt": {"attn_scale": None},
}


# One of each way in which tensors are laid out; the gate has all.
FEW = (
  "llama2", "qwen3", "gemma2", "phi3", "gpt_oss", "mixtral", "falcon_new",
  "olmo2", "bloom", "pythia",
)  # fmt: skip


@pytest.mark.parametrize("name", quick(GGUF, *FEW, others="thorough"))
def test_same_parameters_as_the_folder(name, tmp_path):
  write_gguf(tmp_path / "m.gguf", name)
  params, cfg, _ = load_gguf(tmp_path / "m.gguf")
  want, _ = huggingface.load(FAMILIES / name)
  compare = near if cfg.norm_offset else np.testing.assert_array_equal
  jax.tree.map(compare, params, want)


def near(a, b):
  """`w + 1 - 1` rounds."""
  np.testing.assert_allclose(a, b, atol=2e-7)


TOLD = [name for name in GGUF if name not in PARTIAL]


@pytest.mark.parametrize("name", quick(TOLD, *FEW, others="thorough"))
def test_same_config_and_logits(name, tmp_path):
  write_gguf(tmp_path / "m.gguf", name)
  params, cfg, _ = load_gguf(tmp_path / "m.gguf")
  theirs_params, theirs = huggingface.load(FAMILIES / name)
  untold = UNTOLD.get(name, {})
  assert {field: getattr(cfg, field) for field in untold} == untold
  # Of most architectures llama.cpp's files do not tell the window.
  cfg, theirs = (
    c.replace(window=None, local_layers=(), **untold) for c in (cfg, theirs)
  )
  tokens = np.arange(3, 17)[None]
  np.testing.assert_allclose(
    sinkjax.forward(cfg)(params, tokens).logits,
    sinkjax.forward(theirs)(theirs_params, tokens).logits,
    atol=2e-4,
  )


def test_gemma_fields(tmp_path):
  write_gguf(tmp_path / "2.gguf", "gemma2")
  write_gguf(tmp_path / "3.gguf", "gemma3")
  _, two, _ = load_gguf(tmp_path / "2.gguf")
  _, three, _ = load_gguf(tmp_path / "3.gguf")
  assert two.local_layers == (True, False, True)
  assert (two.attn_softcap, two.logit_softcap, two.window) == (2.0, 3.0, 5)
  assert three.local_layers == (True, True, True)
  assert three.rope_local_base == 10000.0
  assert three.rope_scaling == sinkjax.RopeScaling("linear", factor=8.0)
  assert three.qk_norm and two.post_norms and three.norm_offset == 1.0


def test_rope_factors_scale_frequencies(tmp_path):
  factors = np.array([1, 1, 4, 8], np.float32)
  extra = [("rope_freqs.weight", factors)]
  write_gguf(tmp_path / "m.gguf", "llama2", extra=extra)
  _, cfg, _ = load_gguf(tmp_path / "m.gguf")
  assert cfg.rope_scaling == sinkjax.RopeScaling(
    "factors", factors=(1, 1, 4, 8)
  )


LINEAR = "rope.scaling.type", "linear"
FACTOR = "rope.scaling.factor", 4.0


@pytest.mark.parametrize(
  ("values", "factor"),
  [
    ([("rope.scale_linear", 4.0)], 4.0),  # files of 2023
    ([("rope.scale_linear", 1.0)], None),
    ([FACTOR], 4.0),
    ([LINEAR, FACTOR], 4.0),
    ([FACTOR, ("rope.scale_linear", 2.0)], 4.0),
    ([LINEAR], None),
    ([LINEAR, ("rope.scaling.factor", 0.0)], None),
    ([("rope.scaling.type", "none"), FACTOR], None),
  ],
)
def test_linear_rope_scaling_as_llama_cpp_reads_it(values, factor, tmp_path):
  write_gguf(tmp_path / "m.gguf", "llama2", values=values)
  scaling = load_gguf(tmp_path / "m.gguf")[1].rope_scaling
  want = factor and sinkjax.RopeScaling("linear", factor=factor)
  assert scaling == want


def test_rope_factors_and_a_linear_factor(tmp_path):
  extra = [("rope_freqs.weight", np.array([1, 1, 4, 8], np.float32))]
  write_gguf(tmp_path / "m.gguf", "llama2", extra=extra, values=[FACTOR])
  scaling = load_gguf(tmp_path / "m.gguf")[1].rope_scaling
  assert scaling == sinkjax.RopeScaling("factors", factors=(4, 4, 16, 32))


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("rope.scaling.attn_factor", 0.5, "llama.rope.scaling.attn_factor=0.5 is"),
    ("rope.scaling.alpha", 8.0, "llama.rope.scaling.alpha=8.0 is not supp"),
    ("rope.freq_base_swa", 1e4, "llama.rope.freq_base_swa=10000.0 is not"),
    ("rope.scaling.type", "yarn", "unknown RoPE scaling 'yarn'"),
    ("rope.scaling.factor", -1.0, "RoPE scaling factor -1.0"),
    ("rope.scale_linear", float("nan"), "scale_linear must be a finite"),
  ],
)
def test_unknown_keys_of_rope_are_refused(name, value, message, tmp_path):
  write_gguf(tmp_path / "m.gguf", "llama2", values=[(name, value)])
  with pytest.raises(WeightsError, match=message) as error:
    load_header(tmp_path / "m.gguf")
  assert "\n" not in str(error.value)


def test_missing_and_extra_tensors(tmp_path):
  write_gguf(tmp_path / "a.gguf", "llama2", drop=["model.norm.weight"])
  with pytest.raises(WeightsError, match="'output_norm.weight' is missing"):
    load_gguf(tmp_path / "a.gguf")
  extra = [("blk.0.attn_gate.weight", np.zeros((4, 32), np.float32))]
  write_gguf(tmp_path / "b.gguf", "llama2", extra=extra)
  with pytest.raises(WeightsError, match="attn_gate.weight' has no place"):
    load_gguf(tmp_path / "b.gguf")


def test_unknown_architecture(tmp_path):
  write_gguf(tmp_path / "m.gguf", "llama2")
  data = (tmp_path / "m.gguf").read_bytes().replace(b"llama", b"lemma")
  (tmp_path / "m.gguf").write_bytes(data)
  with pytest.raises(WeightsError, match="unknown architecture 'lemma'"):
    load_gguf(tmp_path / "m.gguf")
  data = data.replace(b"lemma", b"rwkv7")
  (tmp_path / "m.gguf").write_bytes(data)
  with pytest.raises(WeightsError, match="'rwkv7' is a state-space .*: take a"):
    load_gguf(tmp_path / "m.gguf")


def test_experts_in_mxfp4(tmp_path):
  four = gguf.GGMLQuantizationType.MXFP4
  kinds = {"ffn_gate_exps": four, "ffn_up_exps": four}
  write_gguf(tmp_path / "m.gguf", "gpt_oss", quantised=kinds)
  params, wanted = (
    found[0]["blocks"]["mlp"]
    for found in (
      load_gguf(tmp_path / "m.gguf"),
      huggingface.load(FAMILIES / "gpt_oss"),
    )
  )
  for part in ("expert_gate", "expert_up"):
    # Blocks lie along the inputs.
    rows = np.asarray(wanted[part]["kernel"]).swapaxes(2, 3)
    stored = gguf.quants.quantize(np.ascontiguousarray(rows), four)
    np.testing.assert_array_equal(
      params[part]["kernel"].swapaxes(2, 3),
      gguf.quants.dequantize(stored, four).reshape(rows.shape),
    )


def test_the_gate_of_a_shared_expert_may_be_a_vector(tmp_path):
  name = "model.layers.{}.mlp.shared_expert_gate.weight"
  tensors = load_file(FAMILIES / "qwen2_moe" / "model.safetensors")
  names = [name.format(i) for i in range(3)]
  rows = [
    (f"blk.{i}.ffn_gate_inp_shexp.weight", tensors[name][0])
    for i, name in enumerate(names)
  ]
  write_gguf(tmp_path / "m.gguf", "qwen2_moe", drop=names, extra=rows)
  params, cfg, _ = load_gguf(tmp_path / "m.gguf")
  wanted, _ = huggingface.load(FAMILIES / "qwen2_moe")
  jax.tree.map(np.testing.assert_array_equal, params, wanted)


@pytest.mark.parametrize(
  ("model", "name", "value"),
  [
    ("llama2", "attention.causal", False),
    ("llama2", "attention.scale", 0.5),
    ("llama2", "logit_scale", 2.0),
    ("bloom", "attention.max_alibi_bias", 4.0),
    ("granite", "deepstack_mapping", 1),
    ("llama2", "nextn_predict_layers", 1),
    ("qwen2", "expert_count", 4),
    ("mixtral", "expert_group_count", 2),
    ("mixtral", "expert_weights_scale", 2.5),
    ("qwen3_moe", "leading_dense_block_count", 1),
  ],
)
def test_keys_that_change_a_model_are_refused(model, name, value, tmp_path):
  write_gguf(tmp_path / "m.gguf", model, values=[(name, value)])
  with pytest.raises(WeightsError, match=f"{name}={value} is not supported"):
    load_header(tmp_path / "m.gguf")


WINDOWED = ("cohere2", "exaone4", "olmo3", "phi3", "gpt_oss")


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_that_files_tell(name, tmp_path):
  write_gguf(tmp_path / "m.gguf", name)
  cfg, _ = load_header(tmp_path / "m.gguf")
  theirs = huggingface.load_config(FAMILIES / name)
  assert cfg.window == theirs.window and any(cfg.local_layers)
  assert cfg.local_layers == theirs.local_layers
  assert cfg.rope_local_base == theirs.rope_local_base


def test_no_window_in_files_of_a_windowed_family(tmp_path):
  write_gguf(tmp_path / "m.gguf", "olmo2")
  assert load_header(tmp_path / "m.gguf")[0].model_type == "olmo2"
  none = [("attention.sliding_window", 0)]
  write_gguf(tmp_path / "m.gguf", "olmo2", values=none)
  assert load_header(tmp_path / "m.gguf")[0].model_type == "olmo2"


def test_falcon_with_biases_is_refused(tmp_path):
  extra = [("blk.0.attn_qkv.bias", np.zeros(64, np.float32))]
  write_gguf(tmp_path / "m.gguf", "falcon_new", extra=extra)
  with pytest.raises(WeightsError, match="Falcon with biases"):
    load_header(tmp_path / "m.gguf")


def test_falcon_2_needs_a_rope_base(tmp_path, monkeypatch):
  names = [f"transformer.h.{i}.ln_attn" for i in range(3)]
  drop = [f"{name}.{end}" for name in names for end in ("weight", "bias")]
  write_gguf(tmp_path / "m.gguf", "falcon_new", drop=drop)
  assert load_header(tmp_path / "m.gguf")[0].shared_norm
  monkeypatch.setattr(
    gguf.GGUFWriter, "add_rope_freq_base", lambda self, base: None
  )
  write_gguf(tmp_path / "m.gguf", "falcon_new", drop=drop)
  with pytest.raises(WeightsError, match="needs falcon.rope.freq_base"):
    load_header(tmp_path / "m.gguf")


@pytest.mark.parametrize(
  ("model", "name", "value", "message"),
  [
    ("falcon_new", "tensor_data_layout", "other", "tensor_data_layout='other'"),
    ("granite", "rope.scaling.finetuned", False, "finetuned=false"),
    ("phi3", "rope.scaling.attn_factor", 1.5, "attn_factor=1.5 without"),
    ("phi3_longrope", "rope.scaling.factor", 2.0, "without another RoPE"),
  ],
)
def test_keys_of_one_architecture(model, name, value, message, tmp_path):
  write_gguf(tmp_path / "m.gguf", model, values=[(name, value)])
  with pytest.raises(WeightsError, match=message):
    load_header(tmp_path / "m.gguf")


def test_yarn_in_global_layers_alone(tmp_path, monkeypatch):
  write = gguf.GGUFWriter.add_rope_scaling_type
  monkeypatch.setattr(
    gguf.GGUFWriter,
    "add_rope_scaling_type",
    lambda self, _: write(self, gguf.RopeScalingType.YARN),
  )
  key, usual = "rope.scaling.yarn_attn_factor", 0.1 * math.log(2.0) + 1.0
  write_gguf(tmp_path / "m.gguf", "olmo3", values=[(key, usual)])
  cfg, _ = load_header(tmp_path / "m.gguf")
  assert cfg.rope_scaling.kind == "yarn" and cfg.rope_scaling.factor == 2.0
  assert cfg.rope_scaling.attention == usual
  assert cfg.rope_local_base == cfg.rope_base == 500.0
  write_gguf(tmp_path / "m.gguf", "olmo3", values=[(key, 1.5)])
  with pytest.raises(WeightsError, match="yarn_attn_factor=1.5 is not supp"):
    load_header(tmp_path / "m.gguf")


@pytest.mark.parametrize(
  ("key", "values", "message"),
  [
    ("beta", [0.25], "xielu.beta=.*is not supported, only 0.5"),
    ("eps", [-1e-3], "xielu.eps=.*is not supported, only -1e-06"),
    ("alpha_p", [0.5, 0.5], "xielu.alpha_p must be 3 finite numbers"),
    ("alpha_n", [1.0, 2.0, float("nan")], "xielu.alpha_n must be 3 finite"),
  ],
)
def test_numbers_of_xielu(key, values, message, tmp_path, monkeypatch):
  add = f"add_xielu_{key}"
  write = getattr(gguf.GGUFWriter, add)
  monkeypatch.setattr(gguf.GGUFWriter, add, lambda self, _: write(self, values))
  write_gguf(tmp_path / "m.gguf", "apertus")
  with pytest.raises(WeightsError, match=message):
    load_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
  ("model", "name", "value"),
  [
    ("qwen3_moe", "expert_weights_norm", False),
    ("qwen2_moe", "expert_weights_norm", True),
    ("mixtral", "expert_gating_func", 2),
  ],
)
def test_other_weights_of_experts_are_refused(model, name, value, tmp_path):
  write_gguf(tmp_path / "m.gguf", model, values=[(name, value)])
  with pytest.raises(WeightsError, match=f"{name}={value} .*are not what"):
    load_header(tmp_path / "m.gguf")
