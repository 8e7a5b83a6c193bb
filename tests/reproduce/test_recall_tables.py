"""The table of recall beside baselines: runs in a given time, and what they amount to."""

import json
from dataclasses import replace

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import landmark
from landmark.cli.recall import RecallOptions
from landmark.evaluation.asking import Sample
from reproduce.__main__ import REPRODUCE
from reproduce.studies import recall_tables
from reproduce.studies.recall_tables import BASELINES, CONVERTED, Run, figures, table


def test_runs_have_names_of_their_own_and_go_with_their_models():
    names = [one.name for one in (*BASELINES, *CONVERTED)]
    assert len(set(names)) == len(names)
    assert {one.options.attention for one in CONVERTED} == {"landmark", "none"}
    assert all(one.converted for one in CONVERTED)
    assert {one.options.attention for one in BASELINES} == {"full", "sinks", "yarn", None}
    assert not any(one.converted for one in BASELINES)


def test_figures_and_table_of_logs(tmp_path):
    log = tmp_path / "full_8192.jsonl"
    answered = Sample("named", True, 8192, 0, 0.5, ["1"], "1", 1.0, 10.0, 1.0, 1.0)
    samples = [answered, replace(answered, index=1, score=0.0), replace(answered, task="chains")]
    lines = [json.dumps({"model": "m"}), *(json.dumps(sample.to_dict()) for sample in samples), '{"task": "na']
    log.write_text("\n".join(lines))
    assert {name: row["samples"] for name, row in figures(log).items()} == {"named": 2, "chains": 1}
    rows = table(tmp_path).splitlines()
    assert rows[2:] == ["| full | 8,192 |  | 50% (9%-91%), 2 |  |  | 100% (21%-100%), 1 |  |  |"]


@pytest.fixture
def plain(tmp_path) -> str:
    folder = tmp_path / "plain"
    tokenizer = AutoTokenizer.from_pretrained(landmark.model_path())
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).save_pretrained(folder)
    return str(folder)


def test_a_part_runs_and_goes_on(plain, tmp_path, monkeypatch, capsys):
    few = RecallOptions(lengths="1500", samples=1, form="plain")
    runs = (Run("full_1500", replace(few, attention="full"), 1), Run("bm25_1500", replace(few, rag="bm25"), 1))
    monkeypatch.setattr(recall_tables, "BASELINES", runs)
    monkeypatch.setitem(recall_tables.PARTS, "baselines", runs)
    given = ["study", "recall-tables", plain, "--out", str(tmp_path / "out")]
    assert REPRODUCE.main(given) == 0
    written = (tmp_path / "out" / "recall.md").read_text()
    assert [line.split(" | ")[0] for line in written.splitlines()[2:]] == ["| full", "| bm25"]
    assert written in capsys.readouterr().out
    assert REPRODUCE.main([*given, "--only", "bm25_1500"]) == 0
    assert (tmp_path / "out" / "recall.md").read_text() == written
    assert REPRODUCE.main([*given, "--only", "bm25"]) == 2
    assert "no run 'bm25': choose of full_1500, bm25_1500" in capsys.readouterr().err
