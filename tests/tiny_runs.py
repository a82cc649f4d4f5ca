"""Runs on the digits data set that take a fraction of a second, and records made by hand."""

from __future__ import annotations

import copy
import json

from reproductions import records, runner
from reproductions.catalog import validated

MINIBATCH_NETWORK = {"threshold": 1.0, "init": [{"uniform": [-0.22, 0.3]}, {"uniform": [-0.1, 0.9]}]}
MINIBATCH = {"learning_rates": [1e-3, 1e-3], "batch_size": 64, "optimizer": "adam"}
NETWORKS = {
    "online": {
        "threshold": 100.0,
        "init": [{"uniform": [0.0, 15.0]}, {"uniform": [0.0, 48.0]}],
        "dtype": "float64",
    },
    "minibatch": MINIBATCH_NETWORK,
    "ts4tl": MINIBATCH_NETWORK,
    "bs4nn": {**MINIBATCH_NETWORK, "alpha": [0.2, 0.5]},
}
TRAININGS = {
    "online": {"protocol": "online", "gamma": 3.0, "learning_rates": [0.2, 0.2]},
    "minibatch": {"protocol": "minibatch", "gamma": 3.0, **MINIBATCH},
    "ts4tl": {"t_target": 20.0, **MINIBATCH},
    "bs4nn": {"gamma": 3.0, "alpha_rate": 1e-3, "clip": 1.0, **MINIBATCH},
}


def content(kind="online", **training):
    """A config as a TOML file would hold it: 300 training images, 64-12-10, three epochs.

    `kind` is a protocol of S4NN, or another implementation.
    """
    name = "s4nn" if kind in ("online", "minibatch") else kind
    return copy.deepcopy(
        {
            "method": name,
            "implementation": name,
            "dataset": "digits",
            "description": "small",
            "validation": 1137,
            "network": {"layers": ["12"], "t_max": 32, **NETWORKS[kind]},
            "training": {"epochs": 3, **TRAININGS[kind], **training},
        }
    )


def config(kind="online", **training):
    return validated(content(kind, **training), "tiny")


def toml(value):
    """TOML text of a value; a table is written inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool) else str(value)


def write_toml(path, values):
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in values.items()))
    return path


class Quiet:
    """Reports nothing; keeps what happened in `events`."""

    def __init__(self, events=None):
        self.events = [] if events is None else events

    def begin(self, run, epoch, samples):
        self.events.append("begin")

    def advance(self, samples):
        self.events.append("advance")

    def end_epoch(self, entry):
        self.events.append("epoch")

    def end(self):
        self.events.append("end")


class Interrupted(Exception):
    """Stands for a kill."""


class Interrupting(Quiet):
    """Stops a run when it has reported `what` for the `count`th time."""

    def __init__(self, what, count):
        super().__init__()
        self.what, self.count = what, count

    def _check(self):
        if self.events.count(self.what) == self.count:
            raise Interrupted

    def advance(self, samples):
        super().advance(samples)
        self._check()

    def end_epoch(self, entry):
        super().end_epoch(entry)
        self._check()


def execute(run, progress=None):
    """Run to the end and read what was recorded."""
    runner.execute(run, progress or Quiet())
    return records.read_record(run.record)


def record(
    lenient=0.95, *, seed=0, name="s4nn-mnist", dataset="mnist", config_hash="a" * 12, t_max=16, **changes
):
    """A complete record of a 784-400-10 network, made by hand."""
    histogram = [10] + [0] * (t_max if isinstance(t_max, int) else 256)
    return records.Record.model_validate(
        {
            "schema": records.SCHEMA,
            "name": name,
            "method": "s4nn",
            "dataset": dataset,
            "config": {
                "implementation": "s4nn",
                "network": {"layers": ["400"], "t_max": t_max},
                "training": {"epochs": 1},
            },
            "config_hash": config_hash,
            "network_name": "400",
            "t_max": t_max,
            "seed": seed,
            "versions": {},
            "commit": "unknown",
            "machine": {"processor": "x86_64", "cores": 2, "threads": 1, "gpu": None},
            "wall_time_s": 1.0,
            "history": [
                {
                    "epoch": 1,
                    "train": {
                        "loss": 0.1,
                        "accuracy": 0.5,
                        "spikes": [10.0, 1.0],
                        "silent": [0.9, 0.9],
                        "dead": [3, 0],
                    },
                }
            ],
            "test": {
                "accuracy": {"lenient": lenient, "first_index": 0.9, "potential": 0.91, "unique": 0.8},
                "samples": 10,
                "total": [150.0, 80.0, 2.0],
                "until_decision": [90.0, 60.0, 1.0],
                "response_time": 7.0,
                "tied": 0.1,
                "silent": 0.0,
                "response_histogram": histogram,
                "right_histogram": histogram,
                "example": {"label": 3, "times": [[1.0] * 784, [2.0] * 400, [None] * 9 + [3.0]]},
            },
            **changes,
        }
    )


def with_response(run, histogram):
    """A record with another histogram of response times."""
    return run.model_copy(update={"test": run.test.model_copy(update={"response_histogram": histogram})})
