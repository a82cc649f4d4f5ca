"""Many runs at a time: the numbers of one after the other, whatever happens to the processes."""

import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tiny_runs import Interrupted, Interrupting, config, content, execute, write_toml

from reproductions import catalog, records, runner
from reproductions.__main__ import app
from reproductions.errors import SuiteError
from reproductions.runner import Run
from reproductions.sweep import (
    Engine,
    Failure,
    going_on_with,
    in_order,
    is_recorded,
    parse_seeds,
    report,
    runs_of,
    sweep,
)
from reproductions.sweep_progress import Board, FileProgress

pytestmark = pytest.mark.usefixtures("cheap_runs")
LONG = 60


class Told(Board):
    """A board that keeps what it was told."""

    def __init__(self):
        super().__init__(Console(quiet=True))
        self.ended, self.lost = [], []

    def done(self, run, why):
        super().done(run, why)
        self.ended.append((run.seed, why))

    def restarted(self, why):
        super().restarted(why)
        self.lost.append(why)


def _runs(folder, seeds=(0, 1, 2), chosen=None, **options):
    return [Run(chosen or config(), "tiny", seed, results=folder, resume=True, **options) for seed in seeds]


def _numbers(runs):
    read = [records.read_record(run.record) for run in runs]
    return [(record.history, record.test) for record in read]


def _one_by_one(folder, runs):
    again = [Run(run.config, run.name, run.seed, results=folder) for run in runs]
    for run in again:
        execute(run)
    return _numbers(again)


def _mtimes(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


def test_a_sweep_has_the_numbers_of_single_runs(tmp_path):
    runs, board = _runs(tmp_path / "swept"), Told()
    assert sweep(runs, Engine(), board) == []
    assert board.ended == [(0, None), (1, None), (2, None)]
    assert _numbers(runs) == _one_by_one(tmp_path / "single", runs)
    assert list((tmp_path / "swept" / "checkpoints").iterdir()) == []


def test_a_sweep_goes_on_with_what_is_half_done_and_leaves_what_is_recorded(tmp_path):
    runs = _runs(tmp_path / "swept")
    execute(runs[0])
    with pytest.raises(Interrupted):
        runner.execute(runs[1], Interrupting("epoch", 2))
    before = _mtimes(tmp_path / "swept")
    assert sweep(runs, Engine(), Told()) == []
    assert _mtimes(tmp_path / "swept").items() >= before.items()
    assert _numbers(runs) == _one_by_one(tmp_path / "single", runs)


def test_a_run_of_each_config_starts_first_the_longest_ahead(tmp_path):
    def run_of(name, seed, epochs):
        return Run(config(epochs=epochs), name, seed, results=tmp_path)

    runs = [run_of(name, seed, epochs) for name, epochs in (("a", 1), ("b", 3), ("c", 2)) for seed in (0, 1)]
    order = [(run.name, run.seed) for run in in_order(runs)]
    assert order == [("b", 0), ("c", 0), ("a", 0), ("b", 1), ("c", 1), ("a", 1)]
    board = Told()
    assert sweep([run_of("a", 0, 2), run_of("a", 1, 2), run_of("b", 2, 1)], Engine(), board) == []
    assert board.ended == [(0, None), (2, None), (1, None)]


def test_failures_are_listed_and_nothing_else_is_lost(tmp_path, monkeypatch):
    runs, board = _runs(tmp_path / "swept"), Told()
    broken = Run(
        config().model_copy(update={"validation": 1437}), "broken", 1, results=runs[0].results, resume=True
    )
    defect = Run(config().model_copy(update={"encoding": None}), "defect", 1, results=runs[0].results)
    failures = sweep([runs[0], broken, defect, *runs[1:]], Engine(), board)
    assert [failure.run for failure in failures] == [broken, defect]
    assert len(board.ended) == 5
    assert _numbers(runs) == _one_by_one(tmp_path / "single", runs)
    with pytest.raises(SuiteError) as told:
        report(failures, 5)
    assert "2 of 5 runs failed; the same command goes on with them" in str(told.value)
    assert "broken seed 1: validation must be below the 1437 training samples" in str(told.value)
    assert "AttributeError: 'NoneType' object has no attribute 'code'" in str(told.value)
    report([], 5)
    again = [Failure(replace(broken, resume=False, overwrite=True), "")]
    with pytest.raises(SuiteError, match="1 of 5 runs failed; for these alone, run the same command: --over"):
        report(again, 5)


def test_a_record_of_another_file_of_a_method_is_a_failure(tmp_path, monkeypatch):
    (run,) = _runs(tmp_path, seeds=[0])
    execute(run)
    assert is_recorded(run)
    monkeypatch.setattr(type(run.chosen), "sha256", lambda self: "c" * 64)
    assert not is_recorded(run)


@pytest.mark.slow
def test_failures_in_other_processes_are_listed_too(tmp_path):
    (run,) = _runs(tmp_path, seeds=[0])
    broken = Run(config().model_copy(update={"validation": 1437}), "broken", 1, results=tmp_path)
    (failure,) = sweep([broken, run], Engine(workers=2), Told())
    assert (failure.run, run.record.exists()) == (broken, True)
    assert "validation must be below the 1437 training samples" in failure.why


def test_a_record_of_another_config_is_a_failure_unless_overwritten(tmp_path):
    (run,) = _runs(tmp_path, seeds=[0])
    execute(run)
    changed = _runs(tmp_path, seeds=[0], chosen=config(gamma=4.0))
    (failure,) = sweep(changed, Engine(), Told())
    assert "recorded already" in failure.why
    overwriting = [Run(config(gamma=4.0), "tiny", 0, results=tmp_path, overwrite=True)]
    assert sweep(overwriting, Engine(), Told()) == []
    assert records.read_record(run.record).config_hash == config(gamma=4.0).digest()


def test_a_sweep_that_overwrites_goes_on_where_it_was_broken_off(tmp_path):
    (run,) = _runs(tmp_path, seeds=[0])
    execute(run)
    overwriting = Run(run.config, "tiny", 0, results=tmp_path, overwrite=True)
    with pytest.raises(Interrupted):
        runner.execute(overwriting, Interrupting("epoch", 2))
    assert not is_recorded(Run(run.config, "tiny", 0, results=tmp_path, resume=True))
    going_on = going_on_with(overwriting)
    assert (going_on.overwrite, going_on.resume) == (False, True)
    assert len(execute(going_on).history) == 3
    assert going_on_with(overwriting) is overwriting


def _kill_once(pids, run):
    """Kill one of the processes as soon as a checkpoint of the run is there."""

    def kill():
        while not run.checkpoint.exists():
            time.sleep(0.01)
        os.kill(pids()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    return killer


@pytest.mark.slow
def test_two_processes_one_of_them_killed(tmp_path):
    runs, board = _runs(tmp_path / "swept", range(3), config(epochs=LONG)), Told()
    killer = _kill_once(lambda: json.loads(runs[0].progress.read_text())[2:], runs[0])
    assert sweep(runs, Engine(workers=2), board) == []
    killer.join()
    assert board.lost
    assert sorted(board.ended) == [(seed, None) for seed in range(3)]
    assert _numbers(runs) == _one_by_one(tmp_path / "single", runs)


@pytest.mark.slow
def test_a_dask_cluster_of_two_processes_one_of_them_killed(tmp_path):
    distributed = pytest.importorskip("distributed")
    runs, board = _runs(tmp_path / "swept", range(3), config(epochs=LONG)), Told()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        killer = _kill_once(lambda: pids, runs[0])
        assert sweep(runs, Engine(scheduler=cluster.scheduler_address), board) == []
        killer.join()
        assert set(client.run(os.getpid).values()) != set(pids)
    assert sorted(board.ended) == [(seed, None) for seed in range(3)]
    assert _numbers(runs) == _one_by_one(tmp_path / "single", runs)


@pytest.mark.slow
def test_the_command_line_hands_runs_to_a_scheduler(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(catalog, "CONFIGS", tmp_path / "configs")
    write_toml(tmp_path / "configs" / "s4nn-digits.toml", content(epochs=1))
    command = ["sweep", "--methods", "s4nn", "--datasets", "digits", "--results-dir", str(tmp_path)]
    # Threads: the worker has to see the configs of this test.
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, silence_logs=50
    ) as cluster:
        app([*command, "--seeds", "0-1", "--scheduler", cluster.scheduler_address], standalone_mode=False)
    assert [record.seed for record in records.read_all(tmp_path)] == [0, 1]


def test_a_run_that_kills_its_process_again_and_again_is_a_failure(tmp_path, monkeypatch):
    class Dying(Engine):
        def open(self):
            raise_ = (exit_ for exit_ in [RuntimeError("a worker died")])

            class Opened:
                def __enter__(self):
                    def over(*_):
                        raise next(raise_)
                        yield

                    return over

                def __exit__(self, *_):
                    return False

            return Opened()

    runs, board = _runs(tmp_path), Told()
    failures = sweep(runs, Dying(), board)
    assert [failure.why for failure in failures] == ["its process died 4 times (RuntimeError)"] * 3
    assert board.lost == ["RuntimeError"] * 4


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(SuiteError, match=r"no scheduler answers at tcp://127\.0\.0\.1:9"):
        sweep(_runs(tmp_path), Engine(scheduler="tcp://127.0.0.1:9"), Told())


def test_runs_tell_how_far_they_are(tmp_path):
    (run,) = _runs(tmp_path, seeds=[0])
    run.checkpoint.parent.mkdir()
    board = Board(Console(force_terminal=True, quiet=True))
    with board.over([run]):
        progress = FileProgress(run)
        progress.begin(run, 1, 100)
        board._look()
        (task,) = (task for task in board.bar.tasks if task.total == 300)
        assert task.completed == 100
        progress.written = 0
        progress.advance(50)
        board._look()
        assert task.completed == 150
        progress.end()
        board._look()
        assert [task.total for task in board.bar.tasks] == [1]
    assert not run.progress.exists()


def test_what_a_killed_process_told_of_a_run_is_removed_with_the_next_one(tmp_path):
    (run,) = _runs(tmp_path, seeds=[0])
    run.checkpoint.parent.mkdir()
    run.progress.write_text("[1, 2, 3]")
    execute(run)
    assert not run.progress.exists()


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-4", [0, 1, 2, 3, 4]), ("7", [7]), ("0,2,5-7", [0, 2, 5, 6, 7]), ("3-3", [3])]
)
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "3-1", "0,3-1", "3-", "0,,1", "0,0", "1-2-3", str(2**32)])
def test_what_is_no_list_of_seeds_is_named(text):
    with pytest.raises(SuiteError, match=r"--seeds must be numbers and ranges such as 0-4 .* got "):
        parse_seeds(text)


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Configs of two methods, one of them on two data sets."""
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setattr(catalog, "CONFIGS", folder)
    write_toml(folder / "a.toml", content())
    write_toml(folder / "b.toml", content() | {"dataset": "mnist"})
    write_toml(folder / "c.toml", content("ts4tl"))


@pytest.mark.usefixtures("suite")
def test_runs_are_those_of_the_configs_there_are():
    names = [(run.name, run.seed) for run in runs_of([], [], [0, 1])]
    assert names == [
        (name, seed) for name in ("s4nn-digits", "s4nn-mnist", "ts4tl-digits") for seed in (0, 1)
    ]
    assert [run.name for run in runs_of(["ts4tl"], ["digits"], [0])] == ["ts4tl-digits"]
    (run,) = runs_of(["s4nn"], ["mnist"], [3], epochs=2, resume=True)
    assert (run.name, run.seed, run.config.training.epochs, run.resume) == ("s4nn-mnist-epochs2", 3, 2, True)


@pytest.mark.usefixtures("suite")
@pytest.mark.parametrize(
    ("methods", "datasets", "message"),
    [
        (["nothing"], [], "no config for method 'nothing'"),
        (["s4nn"], ["cifar"], "no config for method 's4nn'"),
        (["ts4tl", "s4nn"], ["digits", "cifar"], "no config for data set 'cifar'"),
        (["ts4tl", "s4nn"], ["mnist"], "no config for method 'ts4tl' among those asked for"),
    ],
)
def test_names_without_a_config_are_named(methods, datasets, message):
    with pytest.raises(SuiteError, match=f"{message}.*there are: s4nn on digits"):
        runs_of(methods, datasets, [0])


def test_processes_share_the_processors():
    cores = len(os.sched_getaffinity(0))
    assert Engine().threads is None
    assert Engine(scheduler="tcp://a:1").threads is None
    assert Engine(workers=2).threads == max(1, cores // 2)
    assert torch.get_num_threads() == 1
