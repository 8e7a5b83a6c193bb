"""`landmark contexts`."""

import json
import tarfile

from cli_texts import ask

from landmark.cli import main as cli


def test_contexts_are_listed_checked_exported_and_deleted(context, tmp_path, capsys):
    assert cli.main(["contexts", "ls", str(tmp_path)]) == 0
    assert f"{context}: " in capsys.readouterr().out
    assert cli.main(["contexts", "info", str(context)]) == 0
    assert "block_size: 5" in capsys.readouterr().out
    assert cli.main(["contexts", "verify", str(context)]) == 0
    assert "every committed byte" in capsys.readouterr().out

    tar = tmp_path / "library.tar"
    assert cli.main(["contexts", "export", str(context), "--out", str(tar)]) == 0
    assert f"{tar}: " in capsys.readouterr().out
    before = ask(context, capsys)
    with tarfile.open(tar) as file:
        file.extractall(tmp_path / "elsewhere", filter="data")
    (unpacked,) = (tmp_path / "elsewhere").iterdir()
    assert ask(unpacked, capsys)["answer"] == before["answer"]

    blocks = next((context / "segments").glob("*.blocks"))
    data = bytearray(blocks.read_bytes())
    data[100] ^= 4
    blocks.write_bytes(data)
    assert cli.main(["contexts", "verify", str(context), "--json"]) == 1
    (damage,) = json.loads(capsys.readouterr().out)["damages"]
    assert "block 0" in damage

    assert cli.main(["contexts", "delete", str(context)]) == 2
    assert "--yes" in capsys.readouterr().err
    assert context.exists()
    assert cli.main(["contexts", "delete", str(context), "--yes"]) == 0
    assert not context.exists()
