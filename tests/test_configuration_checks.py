"""What no configuration may hold, whichever model it is of."""

import json
import pickle

import pytest
import torch
from transformers import AutoConfig, AutoModel

from hf_attn import AttnDetrConfig, AttnTranslatorConfig, AttnViTConfig
from hf_attn.configuration_checks import MOST_PARAMETERS
from tests.tiny import tiny_detr, tiny_translator, tiny_vit

CONFIGS = [AttnTranslatorConfig, AttnViTConfig, AttnDetrConfig]
MODELS = [tiny_translator, tiny_vit, tiny_detr]


def stored(config, tmp_path, **changes) -> str:
    """The directory of a configuration whose file somebody has changed."""
    config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return str(tmp_path)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden_size": 64}, "has no field 'hiden_size'; was 'hidden_size' meant\\?"),
        ({"colour": "blue", "xyzzy": 1}, "has no field 'colour', 'xyzzy'. Correct"),
        ({"num_attention_heads": -1}, "num_attention_heads -1 is not at least 1"),
        ({"hidden_size": 10**9, "num_attention_heads": 1}, "hidden_size 1,000,000,000.* parameters, more than"),
        ({"intermediate_size": 10**12}, "intermediate_size 1,000,000,000,000"),
        ({"num_labels": 10**10}, "num_labels 10,000,000,000 is above 1,000,000"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_file_is_refused_with_the_number_and_the_rule(config, changes, message, tmp_path):
    directory = stored(config, tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(directory)
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(directory)


@pytest.mark.parametrize("name", ["encoder_layers", "decoder_layers", "vocab_size"])
def test_the_sizes_of_one_model_count_too(name, tmp_path):
    with pytest.raises(ValueError, match=f"more than {MOST_PARAMETERS:,}; check these sizes"):
        AttnTranslatorConfig(**{name: 10**10})


@pytest.mark.parametrize("sizes", [{"image_size": 10**9}, {"patch_size": 2**20, "image_size": 2**20}])
def test_the_grid_of_a_vit_counts_too(sizes):
    with pytest.raises(ValueError, match=f"more than {MOST_PARAMETERS:,}; check these sizes"):
        AttnViTConfig(**sizes)


@pytest.mark.parametrize("config", CONFIGS)
def test_what_transformers_adds_is_no_unknown_field(config, tmp_path):
    said = {
        "auto_map": {},
        "custom_pipelines": {"one": {}},
        "transformers_version": "5.24.0",
        "use_cache": False,  # a Trainer writes it
        "torch_dtype": "bfloat16",
    }
    loaded = AutoConfig.from_pretrained(stored(config, tmp_path, _name_or_path="elsewhere", **said))
    assert loaded.dtype == torch.bfloat16
    assert not hasattr(loaded, "custom_pipelines")  # the package has its own pipelines


# --- weights ---------------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.parametrize("make", MODELS)
def test_pickled_weights_are_refused_with_the_remedy(make, tmp_path):
    model = make()
    model.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(OSError, match=r"refused.*convert them by `hf-attn convert`"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("make", MODELS)
def test_pickled_weights_are_read_where_they_are_asked_for(make, tmp_path):
    model = make()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = type(model).from_pretrained(tmp_path, use_safetensors=False)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("make", MODELS)
def test_a_directory_without_weights_is_told_from_one_with_pickled_ones(make, tmp_path):
    model = make()
    model.config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        type(model).from_pretrained(tmp_path)
