import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from platformdirs import user_data_path
from tiny_runs import record

from reproductions import records
from reproductions.catalog import validated
from reproductions.errors import SuiteError


def _json(read):
    return json.dumps(read.model_dump(mode="json", by_alias=True, exclude_unset=True))


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "some.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), records.atomic_write(path) as file:  # noqa: PT012
        file.write("half of the n")
        file.flush()
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["some.json"]


def test_a_value_that_json_cannot_hold_leaves_the_old_record(tmp_path):
    path = tmp_path / "some.json"
    records.write_record(path, record())
    wrong = record(seed=1).model_copy(update={"config": {"a": torch.tensor(1.0)}})
    with pytest.raises(ValueError, match="serialize"):
        records.write_record(path, wrong)
    assert records.read_record(path) == record()
    assert [p.name for p in tmp_path.iterdir()] == ["some.json"]


def test_numbers_of_a_list_stand_on_one_line_and_strings_as_they_are(tmp_path):
    path, network = (
        tmp_path / "some.json",
        {"hidden": [3, 2.5e-9, None], "layers": ["5C3", "a [1,  2]"], "none": []},
    )
    written = record().model_copy(update={"config": {"network": network, "pairs": [[1, 2], [3, 4]]}})
    records.write_record(path, written)
    assert json.loads(path.read_text()) == written.model_dump(mode="json", by_alias=True, exclude_unset=True)
    lines = [line.strip() for line in path.read_text().splitlines()]
    assert '"hidden": [3, 2.5e-09, null],' in lines
    assert '"a [1,  2]"' in lines
    assert lines[lines.index('"pairs": [') + 1 :][:2] == ["[1, 2],", "[3, 4]"]


def test_folders_are_created_and_records_read_back_by_file_name(tmp_path):
    folder = tmp_path / "a" / "b"
    for seed in (1, 0):
        records.write_record(records.record_path(folder, "s4nn-mnist", seed), record(seed=seed))
    assert records.read_all(folder) == [record(seed=0), record(seed=1)]
    assert records.read_all(tmp_path / "absent") == []


def test_files_get_the_permissions_that_the_umask_allows(tmp_path):
    previous = os.umask(0o022)
    try:
        records.write_record(tmp_path / "some.json", record())
    finally:
        os.umask(previous)
    assert (tmp_path / "some.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1]",
        lambda text: "3",
        lambda text: "\0\udcff",
    ],
    ids=["half", "empty", "list", "number", "binary"],
)
def test_a_damaged_record_is_named(tmp_path, damage):
    path = tmp_path / "some.json"
    path.write_bytes(damage(_json(record())).encode(errors="surrogateescape"))
    with pytest.raises(SuiteError, match=r"some\.json: not a (complete )?record"):
        records.read_all(tmp_path)


NEEDED = [field.alias or name for name, field in records.Record.model_fields.items() if field.is_required()]


@pytest.mark.parametrize("key", NEEDED)
def test_a_record_that_lacks_what_the_suite_reads_is_named_with_the_key(tmp_path, key):
    incomplete = json.loads(_json(record()))
    del incomplete[key]
    (tmp_path / "some.json").write_text(json.dumps(incomplete))
    with pytest.raises(SuiteError, match=rf"some\.json: not a record \({key}: Field required\)"):
        records.read_all(tmp_path)


def test_a_record_of_another_schema_is_named(tmp_path):
    other = json.loads(_json(record())) | {"schema": records.SCHEMA + 1}
    (tmp_path / "some.json").write_text(json.dumps(other))
    with pytest.raises(
        SuiteError, match=rf"some\.json: .*schema {records.SCHEMA + 1}, expected {records.SCHEMA}"
    ):
        records.read_all(tmp_path)


@pytest.mark.parametrize("path", sorted(records.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_records_carry_the_hash_of_their_config(path):
    recorded = records.read_record(path)
    assert validated(recorded.config, path.name).digest() == recorded.config_hash


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if "seed0" in path.stem else pytest.mark.slow, id=path.stem)
        for path in sorted(records.RESULTS.rglob("*.json"))
    ],
)
def test_committed_records_are_written_as_they_were_read(tmp_path, path):
    few = path.parent.name == "few-labels"
    recorded = records.read_few_labels(path) if few else records.read_record(path)
    records.write_record(tmp_path / "again.json", recorded)
    again, before = (json.loads(file.read_text()) for file in (tmp_path / "again.json", path))
    assert {key: again[key] for key in before} == before
    assert set(again) - set(before) <= {"t_max", "network_name"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", "0", "seed: Input should be a valid integer"),
        ("colour", "red", "colour: Extra inputs are not permitted"),
        ("machine", {"cores": 2}, "machine.processor: Field required; machine.threads"),
    ],
)
def test_a_record_with_a_wrong_value_is_named_with_the_key(tmp_path, key, value, message):
    wrong = json.loads(_json(record())) | {key: value}
    (tmp_path / "some.json").write_text(json.dumps(wrong))
    with pytest.raises(SuiteError, match=rf"some\.json: not a record \({message}"):
        records.read_all(tmp_path)


def test_checkpoints_come_back_bit_for_bit(tmp_path):
    weights = torch.rand(3, 2, dtype=torch.float64)
    path = records.checkpoint_path(tmp_path, "some", 3)
    content = {
        "config_hash": "0",
        "track_test": False,
        "state": {"epoch": 2},
        "method": {"weights": [weights]},
    }
    records.write_checkpoint(path, content)
    read = records.read_checkpoint(path)
    assert torch.equal(read["method"]["weights"][0], weights)
    assert read["state"] == {"epoch": 2}


class _Dangerous:
    def __reduce__(self):
        return (os.system, ("true",))


@pytest.mark.parametrize("content", ["garbage", "half", "pickle"])
def test_a_checkpoint_that_cannot_be_trusted_is_named(tmp_path, content):
    path = tmp_path / "some.pt"
    torch.save({"weights": torch.rand(300), "trap": _Dangerous() if content == "pickle" else 0}, path)
    if content != "pickle":
        path.write_bytes(b"\0garbage" if content == "garbage" else path.read_bytes()[:900])
    with pytest.raises(SuiteError, match=r"(?s)some\.pt: the checkpoint cannot be read .*--overwrite"):
        records.read_checkpoint(path)


@pytest.mark.parametrize("below", [(), ("results",)])
def test_a_results_folder_that_is_a_file_is_named(tmp_path, below):
    (tmp_path / "file").write_text("kept")
    folder = tmp_path.joinpath("file", *below)
    with pytest.raises(SuiteError, match=f"{folder}: nothing can be written there"):
        records.write_record(folder / "some.json", record())
    assert (tmp_path / "file").read_text() == "kept"


def test_a_results_folder_without_write_permission_is_named(tmp_path, monkeypatch):
    def refused(**options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(records.tempfile, "TemporaryFile", refused)
    with pytest.raises(SuiteError, match=f"{tmp_path}: nothing can be written there"):
        records.require_writable(tmp_path)


def test_commit_is_unknown_outside_git_and_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(records, "__file__", str(tmp_path / "reproductions" / "records.py"))
    assert records.commit() == "unknown"
    (tmp_path / "reproductions").mkdir()
    assert records.commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert records.commit() == "unknown"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_tells_changed_code_from_new_results(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    for name in ("ssnn_plugin/core.py", "reproductions/records.py", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "reproductions" / "records.py"))
    records.write_record(tmp_path / "reproductions" / "results" / "some.json", record())
    (tmp_path / "README.md").write_text("changed")
    clean = records.commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (tmp_path / "ssnn_plugin" / "core.py").write_text("changed")
    assert records.commit() == f"{clean}-dirty"


def test_versions_and_machine_say_what_the_numbers_rest_on():
    assert {"python", "ssnn-plugin", "torch", "numpy", "numba"} <= set(records.versions())
    assert records.versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert records.machine("cpu").gpu is None
    assert Path(records.RESULTS).is_dir()


def test_records_of_a_clone_are_kept_in_it_and_of_an_installation_never(tmp_path, monkeypatch):
    assert records._own_results() == records.RECORDED == Path(records.__file__).parent / "results"
    monkeypatch.setattr(records, "__file__", str(tmp_path / "_suite" / "reproductions" / "records.py"))
    monkeypatch.delenv("SSNN_RESULTS", raising=False)
    assert records._own_results() == user_data_path("ssnn_plugin") / "results"
    monkeypatch.setenv("SSNN_RESULTS", str(tmp_path / "mine"))
    assert records._own_results() == tmp_path / "mine"


def test_the_users_own_records_are_read_beside_those_of_the_suite(tmp_path, monkeypatch):
    own, came = tmp_path / "own", tmp_path / "came"
    for folder, seed, lenient in ((came, 0, 0.5), (came, 1, 0.5), (own, 1, 0.75), (own, 2, 0.75)):
        records.write_record(records.record_path(folder, "s4nn-mnist", seed), record(lenient, seed=seed))
    monkeypatch.setattr(records, "RECORDED", came)
    monkeypatch.setattr(records, "RESULTS", own)
    read = records.read_all(own)
    assert [(r.seed, r.test.accuracy["lenient"]) for r in read] == [(0, 0.5), (1, 0.75), (2, 0.75)]
    assert [r.seed for r in records.read_all(came)] == [0, 1]


def test_what_an_older_record_lacks_is_completed(tmp_path):
    old = json.loads(_json(record(t_max=16)))
    del old["network_name"], old["t_max"]
    old["config"]["network"] = {"hidden": [400], "t_max": 16}
    (tmp_path / "old.json").write_text(json.dumps(old))
    completed = records.read_record(tmp_path / "old.json")
    assert (completed.network_name, completed.t_max) == ("400", 16)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "some.pt"
    content = {"config_hash": "x", "track_test": False, "state": {}, "method": {"w": [torch.arange(2000.0)]}}
    records.write_checkpoint(path, content)
    saved = path.read_bytes()
    for place in range(0, len(saved), 97):
        path.write_bytes(saved[:place] + bytes([saved[place] ^ 1]) + saved[place + 1 :])
        with pytest.raises(SuiteError, match=r"some\.pt: the checkpoint cannot be read .*--overwrite"):
            records.read_checkpoint(path)


def test_a_checkpoint_of_the_first_versions_has_no_digest(tmp_path):
    content = {"config_hash": "x", "track_test": False, "state": {}, "method": {"w": [torch.arange(3.0)]}}
    torch.save(content, tmp_path / "some.pt")
    assert torch.equal(records.read_checkpoint(tmp_path / "some.pt")["method"]["w"][0], torch.arange(3.0))
    with pytest.raises(SuiteError, match="it begins with no digest"):
        records.load_tensors(tmp_path / "some.pt", with_digest=True)


@contextlib.contextmanager
def full_disk():
    """Files cannot grow beyond a few bytes; nor could pytest's own, were its report one, outside the test."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: records.write_record(path, record()),
        lambda path: records.write_checkpoint(path, {"weights": torch.rand(1000)}),
    ],
    ids=["record", "checkpoint"],
)
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, write):
    message = rf"{tmp_path / 'some'}: cannot be written \(File too large\)"
    with full_disk(), pytest.raises(SuiteError, match=message):
        write(tmp_path / "some")
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_a_folder_is_named(tmp_path):
    (tmp_path / "some.json").mkdir()
    with pytest.raises(SuiteError, match=r"some\.json: cannot be read \(Is a directory\)"):
        records.read_all(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"schema": 1, "seed": NaN}', "[" * 100_000, '{"schema": 1, "seed": -Infinity}']
)
def test_what_is_no_json_is_named(tmp_path, text):
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(SuiteError, match=r"some\.json: not a complete record"):
        records.read_all(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["accuracy"], {}, r"test\.accuracy: .*must have the rules lenient, .* got none"),
        (["accuracy", "lenient"], 1.5, r"test\.accuracy\.lenient: .*less than or equal to 1"),
        (["accuracy", "best"], 0.5, r"test\.accuracy: .*must have the rules"),
        (["total"], [1.0], r"test: .*one entry per layer"),
        (["until_decision"], [], r"test: .*one entry per layer"),
        (["example", "times"], [], r"test: .*one entry per layer"),
        (["samples"], 11, r"test: .*response_histogram must add up to samples = 11"),
    ],
)
def test_an_edited_record_is_named_with_the_key(tmp_path, keys, value, message):
    edited = json.loads(_json(record()))
    *tables, key = keys
    table = edited["test"]
    for name in tables:
        table = table[name]
    table[key] = value
    (tmp_path / "some.json").write_text(json.dumps(edited))
    with pytest.raises(SuiteError, match=rf"some\.json: not a (complete )?record .*{message}"):
        records.read_all(tmp_path)
