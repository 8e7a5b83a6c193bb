"""The study of rankings: a row for each, of the questions whose statement can be opened."""

import json

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import landmark
from reproduce.__main__ import REPRODUCE


def study(*arguments) -> int:
    return REPRODUCE.main(["study", "source-ranking", *map(str, arguments)])


def test_a_row_for_each_ranking_of_the_same_questions(capsys):
    assert study(landmark.model_path(), "--length", "1500", "--samples", "2", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    assert len({row["questions"] for row in rows}) == 1
    assert 0 < rows[0]["questions"] <= 8
    for row in rows:
        assert row["first"] <= row["among_5"] <= row["questions"]
        assert row["first_low"] <= row["first"] / row["questions"] <= row["first_high"]


def test_a_model_before_its_conversion_is_refused(tmp_path, capsys):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape, vocab_size=60)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(landmark.model_path()).save_pretrained(tmp_path)
    assert study(tmp_path) == 2
    assert "no converted model: give --adapter" in capsys.readouterr().err
