import datetime
import math

import pytest
import torch
from tiny_runs import content, write_toml

from reproductions import catalog
from reproductions.catalog import validated
from reproductions.config import Schedule, read_toml
from reproductions.datasets import Images
from reproductions.errors import SuiteError

INF = math.inf


def _changed(values, key, value):
    *tables, last = key.split(".")
    table = values
    for name in tables:
        table = table[name]
    table[last] = value
    return values


def _read(tmp_path, values):
    return catalog.read(write_toml(tmp_path / "some.toml", values))


@pytest.fixture(scope="module")
def available():
    return catalog.available()


@pytest.mark.parametrize("path", sorted(catalog.CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_named_after_their_content(path, available):
    config = catalog.read(path)
    assert path.stem == f"{config.method}-{config.dataset}"
    assert available[config.method, config.dataset] == config


@pytest.mark.parametrize(
    ("protocol", "key", "value", "message"),
    [
        ("online", "colour", "red", "colour: unknown key, got 'red'"),
        ("online", "network.depth", 2, "network.depth: unknown key, got 2"),
        ("online", "training.batch_size", 2, "training.batch_size: unknown key, got 2"),
        ("online", "training.online", 2, "training.online: unknown key, got 2"),
        ("minibatch", "training.shuffle", True, "training.shuffle: unknown key, got True"),
        ("online", "training.epochs", 0, "training.epochs: Input should be greater than 0, got 0"),
        ("online", "training.epochs", 3.5, "epochs: Input should be a valid integer, got 3.5"),
        ("online", "training.epochs", "3", "training.epochs: Input should be a valid integer, got '3'"),
        ("online", "training.epochs", True, "training.epochs: Input should be a valid integer, got True"),
        ("online", "training.epochs", datetime.date(2020, 1, 1), "training.epochs: .*got .*2020"),
        ("online", "training.gamma", -1.0, "training.gamma: Input should be greater than 0, got -1.0"),
        ("online", "training.gamma", float("inf"), "training.gamma: .*finite.*, got inf"),
        ("online", "training.weight_decay", -1, "weight_decay: .* equal to 0, got -1"),
        ("online", "training.dropout", 1.0, "training.dropout: Input should be less than 1, got 1.0"),
        ("online", "training.scale_dropout", True, "scale_dropout needs a dropout above 0"),
        ("online", "training.learning_rates", [0.1], "learning_rates must hold 2 numbers, .*, got 1"),
        ("online", "training.learning_rates", [0.1, 0.0], "learning_rates.1: .*greater than 0, got 0.0"),
        ("online", "training.learning_rates", [0.1, float("inf")], "learning_rates.1: .*finite.*, got inf"),
        ("online", "training.average_last", 4, "average_last must be at most epochs = 3, got 4"),
        ("online", "training.protocol", "batch", "training: .*'batch'.*'online', 'minibatch'"),
        (
            "online",
            "training.schedule",
            {"kind": "step"},
            "kind: .*'constant', 'linear', 'cosine' or 'exponential', got 'step'",
        ),
        ("online", "training.schedule", {"kind": "linear", "decay": 0.9}, "decay below 1 goes with .*0.9"),
        ("online", "training.schedule", {"kind": "exponential"}, "decay below 1 goes with .*'exponential'"),
        ("online", "training.schedule", {"kind": "exponential", "decay": 1.1}, "schedule.decay: .*got 1.1"),
        ("online", "implementation", "nothing", "implementation: must be one of 's4nn'.*, got 'nothing'"),
        ("online", "implementation", [1], r"implementation: must be one of 's4nn'.*, got \[1\]"),
        ("online", "encoding", {"kind": "latency", "scale": 2.0}, "encoding.scale: unknown key, got 2.0"),
        ("online", "encoding", {"kind": "linear"}, "encoding.scale: missing key"),
        ("online", "encoding", {"kind": "linear", "scale": 0}, "encoding.scale: .*greater than 0, got 0"),
        ("online", "encoding", {"kind": "rank"}, "encoding: .*'rank'.*'latency', 'linear', 'two-times'"),
        ("online", "encoding", {"scale": 2.0}, "encoding: .*kind"),
        ("online", "encoding", {"kind": "two-times", "early": 2.0}, "early must be at most late, got 2.0"),
        (
            "minibatch",
            "training.augment",
            {"shift": 0},
            "training.augment: augment must change something",
        ),
        ("minibatch", "training.augment", {"shift": -1}, "training.augment.shift: .*equal to 0, got -1"),
        (
            "minibatch",
            "training.augment",
            {"shift": 1, "rotate": 181},
            "training.augment.rotate: .*180, got 181",
        ),
        ("minibatch", "training.augment", {"shift": 1, "zoom": 1.0}, "training.augment.zoom: .*, got 1.0"),
        ("minibatch", "training.momentum", 0.9, "momentum is an option of .*'sgd', got .*'adam'"),
        ("minibatch", "training.batch_size", 0, "training.batch_size: .*greater than 0, got 0"),
        ("ts4tl", "training.gamma", 3.0, "training.gamma: unknown key, got 3.0"),
        ("ts4tl", "training.t_target", 32.0, "t_target must be below network.t_max = 32, got 32.0"),
        ("ts4tl", "training.t_target", -1.0, "training.t_target: .*equal to 0, got -1.0"),
        ("ts4tl", "training.variant", "late", "training.variant: .*'one-sided', 'fixed' or 'own'"),
        ("bs4nn", "network.alpha", [0.1], "alpha must hold 2 entries, one per layer, got 1"),
        ("bs4nn", "network.alpha", [0.1, 0], "network.alpha.1: .*greater than 0, got 0"),
        ("bs4nn", "training.gamma", 33.0, "training.gamma must be at most network.t_max = 32, got 33.0"),
        ("bs4nn", "training.clip", 0, "training.clip: .*greater than 0, got 0"),
        ("online", "network.layers", 12, "network.layers: Input should be a valid array, got 12"),
        ("online", "network.layers", [0], "network.layers: a layer must be written as .*got '0'"),
        ("online", "network.layers", ["4C3"], "network: layers must all be fully connected, .*'4C3'"),
        ("online", "network.threshold", -1, "network.threshold: Input should be greater than 0, got -1"),
        ("online", "network.threshold", float("inf"), "network.threshold: .*finite.*, got inf"),
        ("online", "network.t_max", 0, "network.t_max: Input should be greater than 0, got 0"),
        ("online", "network.init", [{"uniform": [0, 1]}], "init must hold 2 entries, .*, got 1"),
        ("online", "network.init", [{"uniform": [0, 1]}, {"normal": [0, -1]}], "normal.1: .* 0, got -1"),
        ("online", "network.init", [{"uniform": [0, 1]}, {"uniform": [2, 1]}], r"init\.1.*uniform"),
        (
            "online",
            "encoding",
            {"kind": "direct"},
            "encoding: .*'direct' .*'latency', 'linear', 'two-times'",
        ),
        ("ts4tl", "encoding", {"kind": "rates", "size": 8, "mean": 0.1}, "encoding: .*'two-times'"),
        ("online", "validation", -1, "validation: .* greater than or equal to 0, got -1"),
        ("online", "dataset", "cifar", "dataset: .*'digits', 'mnist', .*, got 'cifar'"),
        ("online", "images", {"size": [8, 8]}, "images goes with dataset eth80, .*, got 'digits'"),
        ("online", "images", {"grey": True}, "images goes with dataset eth80, .*, got 'digits'"),
        ("online", "images", {"size": [0, 8]}, "images.size.0: .*greater than 0, got 0"),
        ("online", "images", {"size": 8}, "images.size: .*valid array, got 8"),
        ("online", "images", {"width": 8}, "images.width: unknown key, got 8"),
        ("online", "method", 4, "method: Input should be a valid string, got 4"),
    ],
)
def test_a_bad_value_is_refused_with_file_key_value_and_what_is_allowed(
    tmp_path, protocol, key, value, message
):
    with pytest.raises(SuiteError, match=rf"some\.toml: .*{message}"):
        _read(tmp_path, _changed(content(protocol), key, value))


@pytest.mark.parametrize("key", ["training.gamma", "network.t_max", "implementation", "method"])
def test_a_missing_key_is_named(tmp_path, key):
    values = content()
    *tables, last = key.split(".")
    del (values[tables[0]] if tables else values)[last]
    with pytest.raises(SuiteError, match=rf"some\.toml: {key}: missing key"):
        _read(tmp_path, values)


@pytest.mark.parametrize("text", [b"epochs = ", b"a = 1\na = 2\n", b'a = "\xff"\n'])
def test_broken_toml_names_the_file(tmp_path, text):
    path = tmp_path / "some.toml"
    path.write_bytes(text)
    with pytest.raises(SuiteError, match=r"some\.toml: not valid TOML"):
        catalog.read(path)


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(SuiteError, match=str(tmp_path)):
        catalog.read(tmp_path / name)


def test_an_unknown_method_or_data_set_lists_what_there_is():
    with pytest.raises(SuiteError, match=r"'nothing' on data set 'digits'; there are: .*s4nn on digits"):
        catalog.find("nothing", "digits")


def test_one_config_is_found_without_the_others(monkeypatch):
    read = []
    monkeypatch.setattr(catalog, "read_toml", lambda path: read.append(path) or read_toml(path))
    found = catalog.find("s4nn", "digits")
    assert (found.method, found.dataset) == ("s4nn", "digits")
    assert read == [catalog.CONFIGS / "s4nn-digits.toml"]


def test_a_config_is_not_found_under_the_name_of_its_file_alone():
    catalog.find("sparse-ramp", "eth80-leave-objects-out")
    with pytest.raises(SuiteError, match=r"'sparse-ramp-eth80' on data set 'leave-objects-out'; there are:"):
        catalog.find("sparse-ramp-eth80", "leave-objects-out")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "other"),
        ("dataset", "mnist"),
        ("validation", 200),
        ("network.layers", ["13"]),
        ("network.threshold", 101.0),
        ("network.t_max", 33),
        ("network.init", [{"uniform": [0.0, 15.0]}, {"uniform": [0.0, 48.5]}]),
        ("network.init", [{"uniform": [0.0, 15.0]}, {"normal": [0.0, 48.0]}]),
        ("network.dtype", "float32"),
        ("training.epochs", 4),
        ("training.learning_rates", [0.2, 0.3]),
        ("training.schedule", {"kind": "linear"}),
        ("training.schedule", {"kind": "cosine", "begin": 1}),
        ("training.schedule", {"kind": "exponential", "decay": 0.9}),
        ("encoding", {"kind": "latency", "bins": 16}),
        ("encoding", {"kind": "linear", "scale": 32.0}),
        ("encoding", {"kind": "two-times"}),
        ("training.weight_decay", 1e-6),
        ("training.gamma", 4.0),
        ("training.dropout", 0.1),
        ("training.input_dropout", 0.1),
        ("training.redraw_below", 0.1),
        ("training.average_last", 2),
        ("training.shuffle", True),
    ],
)
def test_digest_changes_with_every_setting(tmp_path, key, value):
    assert _read(tmp_path, _changed(content(), key, value)).digest() != _read(tmp_path, content()).digest()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("description", "in other words"),
        ("training.dropout", 0),
        ("network.threshold", 100),
        ("encoding", {"kind": "latency"}),
    ],
)
def test_digest_ignores_description_and_spelling(tmp_path, key, value):
    assert _read(tmp_path, _changed(content(), key, value)).digest() == _read(tmp_path, content()).digest()


def test_what_the_first_records_call_hidden_is_layers(tmp_path):
    values = content()
    now = _read(tmp_path, values)
    del values["network"]["layers"]
    values["network"]["hidden"] = [12]
    assert _read(tmp_path, values) == now
    assert _read(tmp_path, values).digest() == now.digest()


def test_digest_knows_the_form_of_the_images_only_if_it_is_chosen(tmp_path):
    values = content() | {"dataset": "eth80"}
    plain = _read(tmp_path, values)
    assert _read(tmp_path, values | {"images": {}}).digest() == plain.digest()
    forms = [{"size": [8, 8]}, {"size": [8, 9]}, {"grey": True}, {"grey": False}]
    digests = {_read(tmp_path, values | {"images": form}).digest() for form in forms}
    assert len(digests - {plain.digest()}) == len(forms)


def test_with_epochs_changes_epochs_alone(tmp_path):
    config = _read(tmp_path, content(average_last=3))
    fewer = config.with_epochs(2)
    assert (fewer.training.epochs, fewer.training.average_last) == (2, 2)
    assert fewer == _read(tmp_path, content(epochs=2, average_last=2))
    assert config.with_epochs(None) == config
    warmed_up = _read(tmp_path, content(epochs=8, schedule={"warm_up": 3.0}))
    assert warmed_up.with_epochs(7).training.schedule.warm_up == 3.0
    assert warmed_up.with_epochs(2).training.schedule.warm_up == 1.0
    with pytest.raises(SuiteError, match=r"schedule\.warm_up must be below epochs = 3, got 3\.0"):
        _read(tmp_path, content(epochs=3, schedule={"warm_up": 3.0}))
    with pytest.raises(SuiteError, match=r"--epochs: training\.epochs: .*greater than 0, got 0"):
        config.with_epochs(0)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ({"kind": "latency"}, [0, 6, 15, INF]),
        ({"kind": "latency", "bins": 8}, [0, 3, 7, INF]),
        ({"kind": "linear", "scale": 4.0}, [0, 1.6, 3.8, INF]),
        ({"kind": "linear", "scale": 4.0, "silent_below": 0.1}, [0, 1.6, INF, INF]),
        ({"kind": "two-times", "late": 2.0}, [0, 0, 2, 2]),
        ({"kind": "two-times", "early": 1.0, "late": 2.0, "threshold": 0.7}, [1, 2, 2, 2]),
        ({"kind": "two-times", "late": 2.0, "bright_early": False}, [2, 2, 0, 0]),
        ({"kind": "two-times", "late": 2.0, "dark_silent": True}, [0, 0, INF, INF]),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_are_encoded_as_the_config_says(encoding, expected, dtype):
    values = {**content(), "encoding": encoding}
    values["network"] = {**values["network"], "t_max": 16, "dtype": dtype}
    images = Images(torch.tensor([[20, 12, 1, 0]]), torch.tensor([0]), 20, 10, (1, 2, 2))
    times = catalog.validated(values, "some").encode(images)
    torch.testing.assert_close(times, torch.tensor([expected], dtype=getattr(torch, dtype)))


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ({}, [1, 1, 1, 1]),
        ({"kind": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"kind": "cosine", "begin": 2}, [1, 1, 1, 0.5]),
        ({"kind": "exponential", "decay": 0.5}, [1, 0.5, 0.25, 0.125]),
        ({"kind": "exponential", "decay": 0.5, "begin": 1}, [1, 1, 0.5, 0.25]),
    ],
    ids=str,
)
def test_a_schedule_has_the_factors_it_promises(schedule, factors):
    schedule = Schedule(**schedule)
    assert [schedule.factor(epoch, 4) for epoch in range(4)] == pytest.approx(factors)


def test_the_network_is_named_as_papers_do(tmp_path):
    values = content()
    values["network"] |= {"layers": [30, "20"], "init": [{"uniform": [0.0, 1.0]}] * 3}
    values["training"]["learning_rates"] = [0.1] * 3
    assert _read(tmp_path, values).network_name == "30-20"


@pytest.mark.parametrize(
    ("kind", "encoding", "latest"),
    [
        ("minibatch", {"kind": "latency", "bins": 33}, "32"),
        ("minibatch", {"kind": "linear", "scale": 33.0}, "33"),
        ("ts4tl", {"kind": "two-times", "late": 32.0}, "32"),
        ("ts4tl", {"kind": "two-times", "late": 32.0, "dark_silent": True, "bright_early": False}, "32"),
    ],
)
def test_inputs_spike_within_the_window(kind, encoding, latest):
    table = content(kind) | {"encoding": encoding}
    with pytest.raises(SuiteError, match=rf"spikes before network.t_max = 32, got {latest}"):
        validated(table, "tiny")


@pytest.mark.parametrize(
    "encoding",
    [
        {"kind": "latency", "bins": 32},
        {"kind": "linear", "scale": 32.0},
        {"kind": "two-times", "late": 32.0, "dark_silent": True},
    ],
)
def test_inputs_may_fill_the_window(encoding):
    assert validated(content("minibatch") | {"encoding": encoding}, "tiny").encoding.latest(32) < 32
