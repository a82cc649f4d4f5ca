"""Records made by hand for the tests of the report: four methods on two data sets."""

from __future__ import annotations

from tiny_runs import record

from reproductions import records


def runs():
    """`few` has fewer spikes than `s4nn`, though not as a string; `fast` is in continuous time."""
    learning = [
        {"epoch": epoch, "train": {"loss": 0.1, "accuracy": 0.5 + epoch / 10, "spikes": [10.0, 1.0]}}
        for epoch in (1, 2, 3)
    ]
    s4nn = [record(0.95, history=learning), record(0.97, seed=1, history=learning)]
    few = [record(0.96, seed=seed, name="few-mnist", method="few") for seed in range(2)]
    few = [_with_spikes(run, [60.0, 30.0, 1.0]) for run in few]
    fast = record(0.9, name="fast-digits", dataset="digits", t_max=4.0, config_hash="c" * 12)
    silent = record(0.1, name="silent-digits", dataset="digits", config_hash="d" * 12)
    times = [[1.0] * 64, [None] * 5, [None] * 10]
    silent.test.example.times[:] = times
    return [*s4nn, *few, fast, silent]


def _with_spikes(run, total):
    return run.model_copy(update={"test": run.test.model_copy(update={"total": total})})


def written(folder):
    """The folder, with a record of each run."""
    for run in runs():
        records.write_record(records.record_path(folder, run.name, run.seed), run)
    return folder
