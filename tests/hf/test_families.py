"""Which models work, which are refused and why, and the table that says so."""

from pathlib import Path

import pytest
import torch
import transformers
from families import OTHERS, REJECTED, build, family, table

import landmark

IDS = torch.randint(3, 61, (2, 40), generator=torch.Generator().manual_seed(1))
TABLE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_model_to_convert_is_refused_with_the_remedy(name):
    make, reason = OTHERS[name]
    with pytest.raises(ValueError, match=reason):
        landmark.convert(make(), block_size=7)


def test_the_remedies_for_wrapped_models_work():
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(family("llama"), LoraConfig(target_modules=["q_proj"]))
    landmark.convert(adapted.get_base_model(), block_size=7)
    other = get_peft_model(landmark.convert(family("llama"), block_size=7), LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=IDS).logits, other(input_ids=IDS).logits)


def test_embeddings_with_adapters_take_no_new_row():
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(family("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
    with pytest.raises(ValueError, match="convert and resize the model first"):
        landmark.convert(adapted.get_base_model(), block_size=7)


@pytest.mark.parametrize("name", ["stablelm", "gpt_neox_japanese"])
def test_a_refused_model_keeps_its_attention_and_its_class(name):
    model_type, differences, _ = REJECTED[name]
    model = build(model_type, differences)
    before = model.config._attn_implementation, type(model), [len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(ValueError, match=type(model).__name__):
        landmark.convert(model, block_size=7)
    after = model.config._attn_implementation, type(model), [len(m._forward_pre_hooks) for m in model.modules()]
    assert after == before


def test_the_table_in_the_documents_is_what_the_command_gives():
    written = TABLE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}." not in written:
        pytest.skip("docs/models.md was made with another release of transformers")
    assert table() == written
