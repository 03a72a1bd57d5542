"""Files of a model or a config that would run code when they are read: they do not."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamix.config import load_config
from dynamix.errors import ConfigError, EnvironmentTrouble
from dynamix.models.dataset import JaggedRows
from dynamix.models.export import export_ranker, from_bytes, to_bytes
from dynamix.models.ranker import Ranker
from dynamix.models.service import CONFIG, PROGRAM, STATE, load_ranker
from dynamix.models.train import predict


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.mkdir, (self.mark,)  # type: ignore[return-value]


def written(ranker: Ranker, folder: Path) -> Path:
    """The two files from which a ranker is loaded."""
    folder.mkdir()
    torch.save(ranker.state_dict(), folder / STATE)
    (folder / CONFIG).write_text(ranker.config.to_json(), encoding="utf-8")
    return folder


@pytest.mark.parametrize("form", ["torch", "plain", "torn"])
def test_weights_that_are_a_pickle_of_anything_are_refused_and_not_run(
    ranker: Ranker, tmp_path: Path, form: str
) -> None:
    folder, mark = written(ranker, tmp_path / "model"), tmp_path / "mark"
    if form == "torch":
        torch.save({**ranker.state_dict(), "extra": Evil(mark)}, folder / STATE)
    elif form == "plain":
        (folder / STATE).write_bytes(pickle.dumps(Evil(mark), protocol=2))
    else:
        (folder / STATE).write_bytes((folder / STATE).read_bytes()[:200])
    with pytest.raises(EnvironmentTrouble, match=r"state\.pt is torn or holds more than weights") as refused:
        load_ranker(folder)
    assert refused.value.exit_code == 5
    assert not mark.exists()


def test_the_same_pickle_would_run_without_the_restriction(ranker: Ranker, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save(Evil(mark), tmp_path / STATE)
    torch.load(tmp_path / STATE, weights_only=False)
    assert mark.is_dir()


def test_an_exported_program_is_code_so_a_ranker_is_loaded_without_it(
    ranker: Ranker, rows: JaggedRows, tmp_path: Path
) -> None:
    """torch.export.load unpickles the sample inputs of an archive if it must; the folder's other files are enough."""
    single = ranker.float()
    folder, mark = written(single, tmp_path / "model"), tmp_path / "mark"
    good = io.BytesIO(to_bytes(export_ranker(single, rows.batch(np.arange(8)))))
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(folder / PROGRAM, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if "sample_inputs" in name:
                evil = io.BytesIO()
                torch.save((Evil(mark),), evil)
                content = evil.getvalue()
            target.writestr(name, content)
    before = predict(single, rows, batch_size=40)
    after = predict(load_ranker(folder), rows, batch_size=40)
    assert all(np.array_equal(after[head], before[head]) for head in before)
    assert not mark.exists()
    try:
        from_bytes((folder / PROGRAM).read_bytes())
    except Exception as trouble:  # what it makes of the inputs afterwards is its own affair
        assert mark.is_dir(), trouble
    assert mark.is_dir()


def test_a_config_makes_no_objects(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "dynamix.yaml"
    for tag in (f"!!python/object/apply:os.mkdir ['{mark}']", f"!!python/object/new:os.mkdir ['{mark}']"):
        path.write_text(f"label_meaning: {tag}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="is not YAML"):
            load_config(files=[path])
        with pytest.raises(ConfigError):
            load_config(settings=[f"session={tag}"])
    assert not mark.exists()
