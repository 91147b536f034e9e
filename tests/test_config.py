"""A bad config cannot be built, and every error names the field."""

import json

import pytest

import sinkjax
from sinkjax.config import ADDED
from sinkjax.rope_scaling import ADDED_TO_SCALING


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"n_kv_heads": 3}, "n_kv_heads must divide n_heads=4, got 3"),
    ({"n_layers": 0}, "n_layers must be a positive integer"),
    ({"n_layers": True}, "n_layers must be a positive integer"),
    ({"d_model": 1.5}, "d_model must be a positive integer"),
    ({"d_model": 1 << 40}, "d_model must be at most"),
    ({"norm": "batch"}, r"norm must be one of \['rms', 'layer'\]"),
    ({"activation": "tanh"}, "activation must be one of"),
    ({"positions": "sinusoidal"}, "positions must be one of"),
    (
      {"positions": "alibi", "attention": "fused"},
      "attention='fused' has no positions='alibi'",
    ),
    ({"activation": "xielu"}, "activation='xielu' needs gated_mlp=False"),
    ({"alibi_scale": 0.5}, "alibi_scale needs positions='alibi'"),
    ({"dtype": "int8"}, "dtype must be one of"),
    ({"norm_eps": 0.0}, "norm_eps must be a positive number"),
    ({"rope_base": float("inf")}, "rope_base must be a positive number"),
    ({"attn_softcap": -1.0}, "attn_softcap must be a positive number"),
    ({"rope_dim": 3}, "rope_dim must be even"),
    ({"rope_dim": 10}, r"in \(0, 8\], got 10"),
    ({"local_layers": (True,)}, "local_layers must have n_layers=3"),
    ({"local_layers": (True,) * 3}, "needs a window"),
    ({"window": 0, "local_layers": (True,) * 3}, "window must be a positive"),
    ({"bos_id": 64}, r"bos_id must be in \[0, 64\)"),
    ({"pre_norms": False}, "needs post_norms=True or stream_norms=True"),
    ({"stream_norms": True}, "stream_norms=True needs pre_norms=False"),
    (
      {"stream_norms": True, "pre_norms": False, "parallel_residual": True},
      "stream_norms=True needs parallel_residual=False",
    ),
  ],
)
def test_refuses(changes, message):
  with pytest.raises(ValueError, match=message):
    sinkjax.TINY.replace(**changes)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"kind": "ntk"}, "rope_scaling.kind must be one of"),
    ({"kind": "dynamic", "factor": 0.5}, "must be at least 1, got 0.5"),
    (
      {"kind": "longrope", "factors": (1.0, 2.0), "short_factors": (1.0,)},
      "short_factors has 1 entries, factors has 2",
    ),
    ({"kind": "longrope", "factors": (1.0,)}, "short_factors must not be"),
    ({"kind": "yarn", "beta_slow": 0.0}, "rope_scaling.beta_slow must be"),
    ({"kind": "linear", "attention": 2.0}, "attention needs the kind 'yarn'"),
    ({"kind": "linear", "factor": 0}, "rope_scaling.factor"),
    ({"kind": "llama3", "low_freq": 4.0}, "high_freq must exceed"),
    ({"kind": "factors"}, "must not be empty"),
    ({"kind": "factors", "factors": (1.0, -1.0)}, "rope_scaling.factors"),
  ],
)
def test_refuses_scaling(fields, message):
  with pytest.raises(ValueError, match=message):
    sinkjax.RopeScaling(**fields)


def test_factors_must_fit_the_head():
  scaling = sinkjax.RopeScaling("factors", factors=(1.0, 2.0))
  with pytest.raises(ValueError, match="must have 4 entries"):
    sinkjax.TINY.replace(rope_scaling=scaling)


def test_fields_that_recorded_configs_lack():
  """They are written where they are used, and read as their defaults."""
  assert not set(ADDED) & set(sinkjax.TINY.to_dict())
  used = sinkjax.TINY.replace(
    logit_scale=0.5,
    rope_layers=(True, False, True),
    rope_bases=(1e2, 1e4, 1e3),
    pre_norms=False,
    stream_norms=True,
  )
  # Those that a scaling of RoPE has more are left out alike.
  linear = sinkjax.RopeScaling("linear", factor=2.0)
  values = sinkjax.TINY.replace(rope_scaling=linear).to_dict()
  assert not set(ADDED_TO_SCALING) & set(values["rope_scaling"])
  yarn = sinkjax.RopeScaling("yarn", attention=1.2, truncate=False)
  used = used.replace(rope_scaling=yarn)
  values = json.loads(json.dumps(used.to_dict()))
  assert {"logit_scale", "rope_layers", "pre_norms"} <= set(values)
  assert sinkjax.ModelConfig.from_dict(values) == used


def test_dict_round_trip():
  scaling = sinkjax.RopeScaling("factors", factors=(1.0, 2.0, 3.0, 4.0))
  cfg = sinkjax.TINY.replace(
    rope_scaling=scaling, window=4, local_layers=(True, False, True)
  )
  assert sinkjax.ModelConfig.from_dict(cfg.to_dict()) == cfg
  assert hash(cfg) == hash(sinkjax.ModelConfig.from_dict(cfg.to_dict()))
  with pytest.raises(ValueError, match="unknown config field 'height'"):
    sinkjax.ModelConfig.from_dict({"height": 3})


@pytest.mark.parametrize(
  ("field", "value", "expected"),
  [
    ("norm_offset", "1", "a number"),
    ("up_offset", None, "a number"),
    ("residual_scale", [1.0], "a number"),
    ("qk_norm", "no", "true or false"),
    ("tie_embeddings", {}, "true or false"),
    ("qkv_bias", 1, "true or false"),
  ],
)
def test_a_value_of_another_kind_names_its_field(field, value, expected):
  """A text is true, and a number only meets it inside the model."""
  with pytest.raises(ValueError, match=rf"^{field} must be {expected}, got "):
    sinkjax.TINY.replace(**{field: value})
