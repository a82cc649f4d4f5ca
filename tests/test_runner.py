import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import Interrupted, Interrupting, Quiet, config, execute

from reproductions import catalog, datasets, evaluation, records, runner
from reproductions.errors import SuiteError
from reproductions.runner import Run
from ssnn_plugin.metrics import RULES

pytestmark = pytest.mark.usefixtures("cheap_runs")
ROOT = Path(runner.__file__).parents[1]
KILLED_EPOCHS = 150
EVERYTHING = {
    "dropout": 0.3,
    "scale_dropout": True,
    "input_dropout": 0.1,
    "redraw_below": 0.8,
    "average_last": 2,
    "schedule": {"kind": "linear", "begin": 1},
    "weight_decay": 1e-3,
}
CONFIGS = {
    "online": config("online"),
    "online, all options": config("online", shuffle=True, **EVERYTHING),
    "minibatch": config("minibatch"),
    "minibatch, all options": config(
        "minibatch",
        optimizer="sgd",
        momentum=0.9,
        center_gradients=True,
        normalize_errors=False,
        augment={"shift": 1},
        **EVERYTHING,
    ),
    "ts4tl": config("ts4tl"),
    "bs4nn": config("bs4nn", average_last=2),
}
each_config = pytest.mark.parametrize("chosen", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cheap_runs):
    """Record of an uninterrupted run with seed 0, computed once per config."""
    known = {}

    def of(chosen):
        key = chosen.digest()
        if key not in known:
            known[key] = execute(_run(tmp_path_factory.mktemp("finished"), chosen))
        return known[key]

    return of


def _run(folder, chosen=CONFIGS["online"], **options):
    return Run(chosen, "tiny", results=folder, **options)


def _numbers(record):
    return record.history, record.test


def _interrupt(run, what="epoch", count=1):
    with pytest.raises(Interrupted):
        runner.execute(run, Interrupting(what, count))
    assert not run.record.exists()


@each_config
def test_a_run_writes_a_complete_record(finished, chosen):
    record = finished(chosen)
    missing = {"best_test_epoch", "extractor", "method_sha256"}
    assert record.model_fields_set == set(records.Record.model_fields) - missing
    assert record.config == chosen.model_dump(mode="json")
    assert (record.config_hash, record.seed, record.dataset) == (chosen.digest(), 0, "digits")
    assert [entry.epoch for entry in record.history] == [1, 2, 3]
    for entry in record.history:
        assert set(entry.validation) == set(RULES)
        train = entry.train
        assert [len(part) for part in (train.spikes, train.silent, train.dead)] == [2, 2, 2]
        for spikes, silent, dead, size in zip(train.spikes, train.silent, train.dead, (12, 10), strict=True):
            assert math.isclose(silent, 1 - spikes / size, abs_tol=1e-9)
            assert isinstance(dead, int)
            assert 0 <= dead <= size * silent
    test = record.test
    assert set(test.accuracy) == set(RULES)
    assert test.accuracy["unique"] <= test.accuracy["first_index"] <= test.accuracy["lenient"]
    assert test.samples == sum(test.response_histogram) == 360
    assert len(test.response_histogram) == len(test.right_histogram) == 33
    assert all(r <= n for r, n in zip(test.right_histogram, test.response_histogram, strict=True))
    assert test.right_histogram[-1] == 0
    right = sum(test.right_histogram) / 360
    assert test.accuracy["unique"] <= right + 1e-9 <= test.accuracy["potential"] + 2e-9
    assert [len(counts) for counts in (test.total, test.until_decision)] == [3, 3]
    assert all(until <= total for until, total in zip(test.until_decision, test.total, strict=True))
    assert [len(layer) for layer in test.example.times] == [64, 12, 10]
    response = sum(k * n for k, n in enumerate(test.response_histogram)) / 360
    assert math.isclose(test.response_time, response, rel_tol=1e-6)
    assert math.isclose(test.silent, test.response_histogram[-1] / 360, rel_tol=1e-6)


def test_the_record_is_plain_json_and_the_checkpoint_is_gone(tmp_path):
    run = _run(tmp_path)
    runner.execute(run, Quiet())
    json.loads(run.record.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "tiny-seed0.json"]


@each_config
def test_a_seed_fixes_every_number(tmp_path, finished, chosen):
    torch.manual_seed(9)
    assert _numbers(execute(_run(tmp_path, chosen))) == _numbers(finished(chosen))
    other = execute(_run(tmp_path, chosen, seed=1))
    assert other.history != finished(chosen).history
    assert other.test != finished(chosen).test


@pytest.mark.parametrize(
    ("protocol", "option"),
    [
        ("online", {"shuffle": True}),
        ("online", {"dropout": 0.3}),
        ("online", {"dropout": 0.3, "scale_dropout": True}),
        ("online", {"input_dropout": 0.1}),
        ("online", {"redraw_below": 0.5}),
        ("online", {"average_last": 2}),
        ("online", {"schedule": {"kind": "linear"}}),
        ("online", {"schedule": {"kind": "cosine"}}),
        ("online", {"schedule": {"kind": "cosine", "begin": 1}}),
        ("online", {"weight_decay": 1e-3}),
        ("minibatch", {"dropout": 0.3}),
        ("minibatch", {"dropout": 0.3, "scale_dropout": True}),
        ("minibatch", {"input_dropout": 0.1}),
        ("minibatch", {"redraw_below": 0.5}),
        ("minibatch", {"average_last": 2}),
        ("minibatch", {"schedule": {"kind": "linear"}}),
        ("minibatch", {"normalize_errors": False}),
        ("minibatch", {"schedule": {"kind": "cosine", "begin": 1}}),
        ("minibatch", {"weight_decay": 0.1}),
        ("minibatch", {"weight_decay": 0.1, "optimizer": "adamw"}),
        ("minibatch", {"schedule": {"kind": "exponential", "decay": 0.5}}),
        ("minibatch", {"augment": {"shift": 1}}),
        ("minibatch", {"normalize_errors": False, "spike_price": 0.1}),
        ("minibatch", {"center_gradients": True}),
        ("minibatch", {"center_gradients": True, "center_along": "mean input"}),
        ("ts4tl", {"t_target": 10.0}),
        ("ts4tl", {"variant": "fixed"}),
        ("ts4tl", {"variant": "own"}),
        ("bs4nn", {"gamma": 4.0}),
        ("bs4nn", {"alpha_rate": 1e-2}),
        ("bs4nn", {"clip": 1e-3}),
        ("bs4nn", {"center_gradients": True}),
        ("minibatch", {"optimizer": "sgd"}),
        ("minibatch", {"optimizer": "sgd", "momentum": 0.9}),
    ],
    ids=str,
)
def test_no_option_is_ignored(tmp_path, finished, protocol, option):
    *rest, _ = option
    without = finished(config(protocol, **{key: option[key] for key in rest}))
    assert execute(_run(tmp_path, config(protocol, **option))).test != without.test


@each_config
@pytest.mark.parametrize(("what", "count"), [("epoch", 1), ("epoch", 2), ("epoch", 3), ("advance", 1)])
def test_an_interrupted_run_resumes_to_the_same_numbers(tmp_path, finished, chosen, what, count):
    _interrupt(_run(tmp_path, chosen), what, count)
    resumed = execute(_run(tmp_path, chosen, resume=True))
    assert _numbers(resumed) == _numbers(finished(chosen))
    assert not _run(tmp_path).checkpoint.exists()


def test_a_checkpoint_of_the_first_versions_is_taken_up(tmp_path, finished):
    chosen = config("minibatch", average_last=2)
    _interrupt(_run(tmp_path, chosen), "epoch", 2)
    path = _run(tmp_path).checkpoint
    content = records.read_checkpoint(path)
    for entry in content["state"]["history"]:
        entry["train"] |= {key: tuple(entry["train"][key]) for key in ("spikes", "silent", "dead")}
    weights = list(content["method"]["network"].values())
    content["method"]["average"] = {"sums": weights, "epochs": 1}
    records.write_checkpoint(path, content)
    assert _numbers(execute(_run(tmp_path, chosen, resume=True))) == _numbers(finished(chosen))


def test_a_run_resumes_more_than_once(tmp_path, finished):
    _interrupt(_run(tmp_path))
    _interrupt(_run(tmp_path, resume=True))
    resumed = execute(_run(tmp_path, resume=True))
    assert _numbers(resumed) == _numbers(finished(CONFIGS["online"]))


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_numbers(tmp_path):
    chosen = catalog.find("s4nn", "digits").with_epochs(KILLED_EPOCHS)
    name = f"s4nn-digits-epochs{KILLED_EPOCHS}"
    whole = Run(chosen, name, results=tmp_path / "whole")
    killed = Run(chosen, name, results=tmp_path / "killed")
    command = [sys.executable, "-m", "reproductions", "run", "s4nn", "--dataset", "digits"]
    command += ["--epochs", str(KILLED_EPOCHS), "--results-dir", str(killed.results)]
    options = {"cwd": ROOT, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, **options) as process:
        while not killed.checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
    assert not killed.record.exists()
    subprocess.run([*command, "--resume"], **options, check=True)
    assert _numbers(records.read_record(killed.record)) == _numbers(execute(whole))


def test_earlier_work_is_not_overwritten_unasked(tmp_path, finished):
    _interrupt(_run(tmp_path))
    checkpoint = _run(tmp_path).checkpoint.read_bytes()
    with pytest.raises(SuiteError, match=r"tiny-seed0\.pt: .*--resume .*--overwrite"):
        runner.execute(_run(tmp_path), Quiet())
    assert _run(tmp_path).checkpoint.read_bytes() == checkpoint

    assert _numbers(execute(_run(tmp_path, overwrite=True))) == _numbers(finished(CONFIGS["online"]))
    record = _run(tmp_path).record.read_bytes()
    for resume in (False, True):
        with pytest.raises(SuiteError, match=r"tiny-seed0\.json: .*recorded already.*--overwrite"):
            runner.execute(_run(tmp_path, resume=resume), Quiet())
    assert _run(tmp_path).record.read_bytes() == record

    changed = config(gamma=4.0)
    assert execute(_run(tmp_path, changed, overwrite=True)).config_hash == changed.digest()


def test_a_run_that_cannot_begin_overwrites_nothing(tmp_path):
    with pytest.raises(Interrupted):
        runner.execute(_run(tmp_path), Interrupting("epoch", 1))
    other = _run(tmp_path, CONFIGS["online"].model_copy(update={"validation": 1437}), overwrite=True)
    with pytest.raises(SuiteError, match="validation must be below"):
        runner.execute(other, Quiet())
    assert other.checkpoint.exists()
    assert execute(_run(tmp_path, resume=True)).history


def test_a_record_stays_until_the_run_that_overwrites_it_is_complete(tmp_path):
    before = execute(_run(tmp_path))
    changed = config(gamma=4.0)
    with pytest.raises(Interrupted):
        runner.execute(_run(tmp_path, changed, overwrite=True), Interrupting("epoch", 2))
    assert records.read_record(_run(tmp_path).record) == before


def test_a_run_that_overwrites_can_be_resumed(tmp_path):
    execute(_run(tmp_path))
    changed = config(gamma=4.0)
    with pytest.raises(Interrupted):
        runner.execute(_run(tmp_path, changed, overwrite=True), Interrupting("epoch", 2))
    assert execute(_run(tmp_path, changed, resume=True)).config_hash == changed.digest()


def test_another_seed_is_another_run(tmp_path):
    _interrupt(_run(tmp_path))
    execute(_run(tmp_path, seed=1))
    assert _run(tmp_path).checkpoint.exists()


def test_resuming_under_another_config_is_refused(tmp_path):
    _interrupt(_run(tmp_path))
    with pytest.raises(SuiteError, match=r"tiny-seed0\.pt: written under another config .*--overwrite"):
        runner.execute(_run(tmp_path, config(gamma=4.0), resume=True), Quiet())
    assert _run(tmp_path).checkpoint.exists()


def test_resuming_with_other_images_or_another_file_of_the_method_is_refused(tmp_path, monkeypatch):
    _interrupt(_run(tmp_path))
    for changed in (
        lambda: monkeypatch.setattr(runner.Implementation, "sha256", lambda self: "of another version"),
        lambda: monkeypatch.setattr(datasets, "load", _with_a_label_changed(datasets.load)),
    ):
        changed()
        with pytest.raises(SuiteError, match=r"tiny-seed0\.pt: begun with other images, .*--overwrite"):
            runner.execute(_run(tmp_path, resume=True), Quiet())
        monkeypatch.undo()
    state = records.read_checkpoint(_run(tmp_path).checkpoint)
    del state["state"]["origin"]  # as the suite's first checkpoints
    records.write_checkpoint(_run(tmp_path).checkpoint, state)
    execute(_run(tmp_path, resume=True))


def _with_a_label_changed(load):
    def changed(*arguments):
        images = load(*arguments)
        return dataclasses.replace(images, y=torch.cat([1 - images.y[:1].clamp(max=1), images.y[1:]]))

    return changed


def test_the_commit_of_a_record_is_the_one_that_ended_it(tmp_path, monkeypatch):
    for commit in ("a", "b"):
        monkeypatch.setattr(records, "commit", lambda commit=commit: commit)
        with pytest.raises(Interrupted):
            runner.execute(_run(tmp_path, resume=True), Interrupting("epoch", 1))
    monkeypatch.setattr(records, "commit", lambda: "a")
    record = execute(_run(tmp_path, resume=True))
    assert (record.commit, record.commits) == ("a", ["b", "a"])


@pytest.mark.parametrize("tracked", [False, True])
def test_resuming_with_another_track_test_is_refused(tmp_path, tracked):
    _interrupt(_run(tmp_path, track_test=tracked))
    with pytest.raises(SuiteError, match="--track-test"):
        runner.execute(_run(tmp_path, track_test=not tracked, resume=True), Quiet())


@pytest.mark.parametrize("content", [{"epoch": 1}, [1], None], ids=["other keys", "list", "garbage"])
def test_resuming_from_a_damaged_checkpoint_names_it(tmp_path, content):
    run = _run(tmp_path, resume=True)
    records.write_checkpoint(run.checkpoint, content)
    if content is None:
        run.checkpoint.write_bytes(b"garbage")
    with pytest.raises(SuiteError, match=r"tiny-seed0\.pt"):
        runner.execute(run, Quiet())


def _watch_loading(monkeypatch):
    events, load = [], datasets.load

    def watched(name, split, *rest):
        events.append(split)
        return load(name, split, *rest)

    monkeypatch.setattr(datasets, "load", watched)
    return events


@pytest.mark.parametrize(
    ("track", "expected"),
    [
        (False, ["train", "test", "begin", "epoch", "epoch", "epoch", "end", "look"]),
        (True, ["train", "test", "begin", "look", "epoch", "look", "epoch", "look", "epoch", "end", "look"]),
    ],
)
def test_the_test_set_is_opened_before_training_and_looked_at_once_after_it_unless_tracked(
    tmp_path, monkeypatch, track, expected
):
    events, evaluate = _watch_loading(monkeypatch), runner.evaluate

    def watched(method, config, images):
        events.extend(["look"] if len(images) == 360 else [])
        return evaluate(method, config, images)

    monkeypatch.setattr(runner, "evaluate", watched)
    runner.execute(_run(tmp_path, track_test=track), Quiet(events))
    assert [event for event in events if event != "advance"] == expected


def test_a_test_set_that_cannot_be_read_is_told_before_training(tmp_path, monkeypatch):
    load, progress = datasets.load, Quiet()

    def broken(name, split, *rest):
        if split == "test":
            raise SuiteError("test.png: not an image")
        return load(name, split, *rest)

    monkeypatch.setattr(datasets, "load", broken)
    with pytest.raises(SuiteError, match=r"test\.png"):
        runner.execute(_run(tmp_path), progress)
    assert progress.events == []


@pytest.mark.parametrize("protocol", ["online", "minibatch"])
def test_tracking_the_test_set_changes_no_number(tmp_path, finished, protocol):
    plain = finished(CONFIGS[protocol])
    tracked = execute(_run(tmp_path, CONFIGS[protocol], track_test=True))
    assert tracked.model_fields_set - plain.model_fields_set == {"best_test_epoch"}
    test = [entry.test for entry in tracked.history]
    assert [(entry.train, entry.validation) for entry in tracked.history] == [
        (entry.train, entry.validation) for entry in plain.history
    ]
    assert tracked.test == plain.test
    assert test[-1] == plain.test.accuracy
    best = tracked.best_test_epoch
    assert best.accuracy == test[best.epoch - 1]
    assert best.accuracy["lenient"] == max(accuracy["lenient"] for accuracy in test)


def test_averaged_weights_of_one_epoch_are_those_weights(tmp_path, finished):
    last = execute(_run(tmp_path, config(average_last=1)))
    assert _numbers(last) == _numbers(finished(CONFIGS["online"]))


@pytest.mark.parametrize(("gpu", "message"), [(False, "'cuda' .* no GPU"), (True, "online protocol .* CPU")])
def test_a_device_that_cannot_be_used_is_refused(tmp_path, monkeypatch, gpu, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(SuiteError, match=f"--device.*{message}"):
        runner.execute(_run(tmp_path, device="cuda"), Quiet())
    assert not _run(tmp_path).checkpoint.exists()


def test_a_validation_part_that_is_too_large_is_refused(tmp_path):
    chosen = CONFIGS["online"].model_copy(update={"validation": 1437})
    with pytest.raises(SuiteError, match="validation must be below the 1437 training samples, got 1437"):
        runner.execute(_run(tmp_path, chosen), Quiet())


def test_a_results_folder_that_cannot_be_used_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    progress = Quiet()
    with pytest.raises(SuiteError, match=f"{tmp_path / 'file'}: nothing can be written there"):
        runner.execute(_run(tmp_path / "file"), progress)
    assert progress.events == []


def test_a_record_names_every_commit_that_trained_it(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "commit", lambda: "first")
    _interrupt(_run(tmp_path), "epoch", 1)
    monkeypatch.setattr(records, "commit", lambda: "second")
    assert execute(_run(tmp_path, resume=True)).commits == ["first", "second"]


@pytest.mark.parametrize(
    ("t_max", "parts", "expected"),
    [(4, 4, {0: 1, 3: 2, 4: 1}), (4.0, 256, {0: 1, 192: 1, 255: 1, 256: 1}), (3, 3, {0: 1, 3: 3})],
)
def test_the_response_histogram_has_equal_parts_and_the_silent_last(t_max, parts, expected):
    outputs = torch.tensor([[3.0, 0.0], [3.0, 3.5], [math.inf, 3.999], [math.inf, math.inf]])
    histogram = evaluation._response_histogram(outputs, t_max)
    assert {part: count for part, count in enumerate(histogram) if count} == expected
    assert len(histogram) == parts + 1


EDITS = {
    "no state": lambda c: c.update(state=None),
    "a word for an epoch": lambda c: c["state"].update(epoch="two"),
    "another epoch": lambda c: c["state"].update(epoch=3),
    "an epoch more": lambda c: c["state"].update(epoch=7),
    "an epoch below 0": lambda c: c["state"].update(epoch=-1),
    "history without numbers": lambda c: c["state"].update(history=[{}]),
    "no method": lambda c: c.update(method={}),
    "a list for the method": lambda c: c.update(method=[]),
    "weights of another shape": lambda c: c["method"].update(network={"layers.0.weight": torch.zeros(1)}),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("protocol", ["online", "minibatch"])
def test_an_edited_checkpoint_is_named(tmp_path, protocol, edit):
    run = _run(tmp_path, CONFIGS[protocol], resume=True)
    with pytest.raises(Interrupted):
        runner.execute(_run(tmp_path, CONFIGS[protocol]), Interrupting("epoch", 2))
    content = records.read_checkpoint(run.checkpoint)
    if "network" not in content["method"] and edit is EDITS["weights of another shape"]:
        content["method"]["weights"] = [torch.zeros(1)]
    else:
        edit(content)
    records.write_checkpoint(run.checkpoint, content)
    with pytest.raises(SuiteError, match=r"tiny-seed0\.pt: .*--overwrite"):
        runner.execute(run, Quiet())


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_run_that_another_process_is_at_is_refused(tmp_path, finished, options):
    class Second(Quiet):
        def end_epoch(self, entry):
            super().end_epoch(entry)
            before = _run(tmp_path).checkpoint.read_bytes()
            with pytest.raises(SuiteError, match=r"tiny-seed0\.lock: another process is at this run"):
                runner.execute(_run(tmp_path, **options), Quiet())
            assert _run(tmp_path).checkpoint.read_bytes() == before

    runner.execute(_run(tmp_path), progress := Second())
    assert progress.events.count("epoch") == 3
    assert _numbers(records.read_record(_run(tmp_path).record)) == _numbers(finished(CONFIGS["online"]))


def test_what_a_killed_run_left_behind_is_swept_by_the_next(tmp_path):
    run = _run(tmp_path)
    run.checkpoint.parent.mkdir()
    left = [
        run.record.with_name(f".{run.record.name}.abc.partial"),
        run.checkpoint.with_name(".tiny-seed0.pt.xyz.partial"),
    ]
    others = run.record.with_name(".tiny-seed1.json.abc.partial")
    for path in (*left, others, run.lock):
        path.write_text("half")
    runner.execute(run, Quiet())
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        ".tiny-seed1.json.abc.partial", "checkpoints", "tiny-seed0.json",
    ]  # fmt: skip


@pytest.mark.parametrize("t_max", [0.7, 1.0, 2.3, 3.3, 4.6, 12.3, 16])
def test_silence_is_no_late_response(t_max):
    """Also where the window's end is less in single precision."""
    last = torch.nextafter(torch.tensor(float(t_max)), torch.tensor(0.0)).item()
    outputs = torch.tensor([[math.inf, math.inf], [math.inf, 0.0], [last - 1e-6 * t_max, math.inf]])
    first, *others, late, silent = evaluation._response_histogram(outputs, t_max)
    assert (first, late, silent) == (1, 1, 1)
    assert not any(others)
