"""Searches over ranges: reproducible, resumable, blind to the test set."""

import contextlib
import re
from pathlib import Path

import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tiny_runs import Interrupted, content, execute, write_toml

from reproductions import catalog, datasets, runner, search
from reproductions.__main__ import app
from reproductions.config import read_toml
from reproductions.errors import Diverged, SuiteError
from reproductions.locks import locked
from reproductions.runner import Run
from reproductions.sweep import Engine

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("cheap_runs")
RANGES = {
    "training.gamma": {"low": 1.0, "high": 6.0},
    "training.learning_rates.0": {"low": 0.01, "high": 1.0, "log": True},
    "training.epochs": {"low": 1, "high": 2},
    "training.shuffle": {"choices": [True, False]},
}


@pytest.fixture
def ranges(tmp_path, monkeypatch):
    """A file of ranges for the only config of a suite."""
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setattr(catalog, "CONFIGS", folder)
    write_toml(folder / "s4nn-digits.toml", content(shuffle=False))

    def write(**changes):
        settings = {"method": "s4nn", "dataset": "digits", "trials": 4, "ranges": RANGES} | changes
        path = tmp_path / "tiny.toml"
        tables = settings.pop("ranges")
        write_toml(path, settings)
        lines = [f'"{key}" = {_toml(value)}' for key, value in tables.items()]
        path.write_text("\n".join([path.read_text(), "[ranges]", *lines]))
        return path

    return write


def _toml(value):
    return search._inline(value)


def _values(study):
    return [(trial.params, trial.values) for trial in study.trials if trial.values]


def test_a_search_keeps_to_its_ranges_and_never_opens_the_test_set(ranges, tmp_path, monkeypatch):
    load, opened = datasets.load, []

    def watched(name, split, *rest):
        opened.append(split)
        return load(name, split, *rest)

    monkeypatch.setattr(datasets, "load", watched)
    study = search.find(ranges(), tmp_path / "trials", Engine())
    assert opened == ["train"] * 4
    for params, (accuracy, spikes) in _values(study):
        assert 1 <= params["training.gamma"] <= 6
        assert 0.01 <= params["training.learning_rates.0"] <= 1
        assert params["training.epochs"] in (1, 2)
        assert params["training.shuffle"] in (True, False)
        assert 0 < accuracy < 1
        assert spikes > 0
    assert len(_values(study)) == 4
    names = {path.name for path in (tmp_path / "trials").iterdir()}
    assert names == {"tiny.journal", "checkpoints"}
    again = search.find(ranges(), tmp_path / "again", Engine())
    assert _values(again) == _values(study)


def test_a_search_goes_on_where_it_was(ranges, tmp_path, monkeypatch):
    validate, done = runner.validate, []

    def interrupted(run, progress):
        if len(done) == 2:
            raise Interrupted
        done.append(run.config.digest())
        return validate(run, progress)

    monkeypatch.setattr(search, "validate", interrupted)
    with pytest.raises(Interrupted):
        search.find(ranges(), tmp_path / "trials", Engine())
    # A killed process cannot tell that its trial failed.
    study = search._study(ranges(), tmp_path / "trials")
    left = study.ask({"training.gamma": optuna.distributions.FloatDistribution(1, 6)})
    monkeypatch.setattr(search, "validate", validate)
    study = search.find(ranges(), tmp_path / "trials", Engine())
    assert len(_values(study)) == 4
    assert left.params["training.gamma"] in [params["training.gamma"] for params, _ in _values(study)]
    assert search.find(ranges(), tmp_path / "trials", Engine()).trials == study.trials
    before = _values(study)
    more = search.find(ranges(trials=5), tmp_path / "trials", Engine())
    assert _values(more)[:4] == before
    assert len(_values(more)) == 5
    with pytest.raises(SuiteError, match=r"tiny\.journal: begun with another search"):
        search.find(ranges(seed=1), tmp_path / "trials", Engine())
    assert len(_values(search.find(ranges(trials=5, give_up=0.1), tmp_path / "trials", Engine()))) == 5
    write_toml(catalog.CONFIGS / "s4nn-digits.toml", content(shuffle=False, weight_decay=1e-3))
    with pytest.raises(SuiteError, match=r"tiny\.journal: begun with another config"):
        search.find(ranges(trials=6), tmp_path / "trials", Engine())


def test_the_config_that_is_written_has_the_numbers_of_its_trial(ranges, tmp_path):
    study = search.find(ranges(), tmp_path / "trials", Engine())
    trial = search.write_chosen(ranges(), study, tmp_path / "chosen.toml")
    chosen = catalog.read(tmp_path / "chosen.toml")
    assert chosen.training.gamma == trial.params["training.gamma"]
    assert "found by a search of 4 trials" in chosen.description
    search.write_chosen(ranges(trials=2), study, tmp_path / "chosen.toml")
    assert "found by a search of 4 trials" in catalog.read(tmp_path / "chosen.toml").description
    record = execute(Run(chosen, "chosen", results=tmp_path / "results"))
    assert record.history[-1].validation["potential"] == pytest.approx(trial.values[0])


@pytest.fixture
def diverging(monkeypatch):
    """A suite whose training diverges at learning rates above a limit that the test may set."""
    train, limit = runner._train, [0.1]

    def trained(run, *rest):
        if run.config.training.learning_rates[0] > limit[0]:
            run.checkpoint.touch()
            raise Diverged("training diverged in epoch 1: the loss is nan")
        return train(run, *rest)

    monkeypatch.setattr(runner, "_train", trained)
    return limit


def test_a_search_goes_on_when_trials_diverge(ranges, tmp_path, diverging, capsys):
    chosen, trials = tmp_path / "chosen.toml", tmp_path / "trials"
    app(
        ["search", str(ranges(trials=12)), "--output", str(chosen), "--storage-dir", str(trials)],
        standalone_mode=False,
    )
    complete, diverged = search.counted(search._study(ranges(), trials))
    assert complete + diverged == 12
    assert complete
    assert diverged
    assert f"{diverged} of 12 trials diverged" in capsys.readouterr().out
    assert catalog.read(chosen).training.learning_rates[0] <= 0.1
    assert "found by a search of 12 trials" in catalog.read(chosen).description
    assert not list(trials.rglob("*.pt"))
    assert sum(search.counted(search.find(ranges(trials=12), trials, Engine()))) == 12


def test_a_search_of_which_nothing_comes_says_so(ranges, tmp_path, diverging):
    diverging[0] = 0.0
    study = search.find(ranges(), tmp_path / "trials", Engine())
    with pytest.raises(SuiteError, match=r"tiny\.toml: all of 4 trials diverged"):
        search.write_chosen(ranges(), study, tmp_path / "chosen.toml")


def test_a_search_that_another_process_is_at_is_refused(ranges, tmp_path):
    (tmp_path / "trials").mkdir()
    with (
        locked(tmp_path / "trials" / "tiny.lock"),
        pytest.raises(SuiteError, match=r"tiny\.lock: another process is at this search"),
    ):
        search.find(ranges(), tmp_path / "trials", Engine())


def test_a_process_that_is_killed_is_told(ranges, tmp_path):
    class Dying(Engine):
        @contextlib.contextmanager
        def open(self):
            def over(*_):
                yield None
                raise TerminatedWorkerError("a worker process was killed")

            yield over

    with pytest.raises(SuiteError, match=r"a process of the search was killed \(TerminatedWorkerError\)"):
        search.find(ranges(), tmp_path / "trials", Dying())


def test_the_command_line_writes_what_is_chosen(ranges, tmp_path, capsys):
    chosen = tmp_path / "chosen.toml"
    app(
        ["search", str(ranges()), "--output", str(chosen), "--storage-dir", str(tmp_path / "trials")],
        standalone_mode=False,
    )
    assert "written to" in capsys.readouterr().out
    assert 1 <= catalog.read(chosen).training.gamma <= 6
    assert {path.name for path in tmp_path.iterdir()} == {"chosen.toml", "configs", "tiny.toml", "trials"}


@pytest.mark.slow
def test_two_processes_share_the_trials(ranges, tmp_path):
    study = search.find(ranges(trials=6), tmp_path / "trials", Engine(workers=2))
    assert len(_values(study)) >= 6
    drawn = [params["training.gamma"] for params, _ in _values(study)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.slow
def test_workers_that_draw_the_same_values_share_what_they_come_to(ranges, tmp_path):
    path = ranges(trials=4, ranges={"training.gamma": {"choices": [3.0]}})
    study = search.find(path, tmp_path / "trials", Engine(workers=2))
    assert len({tuple(values) for _, values in _values(study)}) == 1
    assert all(trial.state.is_finished() for trial in study.trials)


def test_values_that_are_drawn_again_are_not_trained_again(ranges, tmp_path, monkeypatch):
    validate, done = runner.validate, []

    def counted(run, progress):
        done.append(run)
        return validate(run, progress)

    monkeypatch.setattr(search, "validate", counted)
    study = search.find(
        ranges(ranges={"training.gamma": {"choices": [2.0, 3.0]}}), tmp_path / "trials", Engine()
    )
    assert len(_values(study)) == 4
    assert len(done) == len({params["training.gamma"] for params, _ in _values(study)}) <= 2


def test_values_that_diverged_are_not_trained_again(ranges, tmp_path, monkeypatch):
    validate, done = runner.validate, []

    def diverging(run, progress):
        done.append(run.config.training.gamma)
        if run.config.training.gamma == 3.0:
            raise Diverged("training diverged in epoch 1: the loss is nan")
        return validate(run, progress)

    monkeypatch.setattr(search, "validate", diverging)
    path = ranges(trials=8, ranges={"training.gamma": {"choices": [2.0, 3.0]}})
    study = search.find(path, tmp_path / "trials", Engine())
    assert sum(search.counted(study)) == 8
    assert sorted(done) == [2.0, 3.0]


def test_a_search_that_is_ended_takes_up_the_trial_it_was_at(ranges, tmp_path, monkeypatch):
    validate = runner.validate

    def ended(run, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "validate", ended)
    with pytest.raises(KeyboardInterrupt):
        search.find(ranges(), tmp_path / "trials", Engine())
    (left,) = search._study(ranges(), tmp_path / "trials").get_trials(states=[optuna.trial.TrialState.FAIL])
    monkeypatch.setattr(search, "validate", validate)
    study = search.find(ranges(), tmp_path / "trials", Engine())
    assert _values(study)[0][0] == left.params


@pytest.mark.parametrize(
    ("give_up", "expected"), [(0.0, 0), (0.01, 1), (0.2, 2)], ids=["the best", "one per cent", "much"]
)
def test_few_spikes_may_cost_some_accuracy(give_up, expected):
    trials = [optuna.trial.create_trial(values=values) for values in ([0.9, 50.0], [0.895, 20.0], [0.8, 9.0])]
    assert search.choose(trials, give_up) is trials[expected]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranges": {"training.gama": {"low": 1.0, "high": 6.0}}}, "ranges: the config has no training.gama"),
        ({"ranges": {"training.colour.0": {"choices": [1]}}}, "ranges: the config has no training.colour.0"),
        (
            {"ranges": {"training.learning_rates.9": {"low": 1, "high": 2}}},
            "has no training.learning_rates.9",
        ),
        ({"ranges": {"training.gamma": {"low": 2, "high": 1}}}, "needs choices, or low <= high"),
        ({"ranges": {"training.gamma": {"low": 0, "high": 1, "log": True}}}, "above 0 with log"),
        ({"ranges": {"training.gamma": {"low": 0, "choices": [1]}}}, "choices go without low"),
        ({"ranges": {}}, "ranges: .*at least 1"),
        ({"trials": 0}, "trials: "),
        ({"method": "nothing"}, "no config for method 'nothing'"),
    ],
)
def test_what_is_wrong_in_a_file_of_ranges_is_named(ranges, tmp_path, changes, message):
    with pytest.raises(SuiteError, match=message):
        search.find(ranges(**changes), tmp_path / "trials", Engine())


def test_a_value_that_the_config_refuses_is_named(ranges, tmp_path):
    path = ranges(ranges={"training.gamma": {"choices": [-1.0]}})
    with pytest.raises(SuiteError, match=r"tiny\.toml: training\.gamma: .*greater than 0"):
        search.find(path, tmp_path / "trials", Engine())


def test_tables_are_written_as_they_are_read(tmp_path):
    tables = {
        "method": 'a "quoted" name',
        "validation": 3,
        "network": {"layers": ["12", "10"], "init": [{"uniform": [0.0, 1e-05]}], "on": True},
        "training": {"rate": 1e300, "schedule": {"kind": "linear", "begin": 1}},
        **{name: {"x": 1} for name in ("samples", "images", "features", "encoding")},
    }
    (tmp_path / "a.toml").write_text(search.to_toml(tables))
    assert read_toml(tmp_path / "a.toml") == tables
    assert list(read_toml(tmp_path / "a.toml")) == list(tables)


def test_the_ranges_in_the_documentation_are_those_of_the_config(tmp_path):
    text = (Path(search.__file__).parents[1] / "docs" / "sweeps.md").read_text()
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "ranges.toml").write_text(toml)
    found, tables = search.read(tmp_path / "ranges.toml")
    values = {key: (kept.choices or [kept.low])[0] for key, kept in found.ranges.items()}
    assert search.with_values(tables, values, "docs").training.gamma == 1.0
