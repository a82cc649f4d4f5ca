import datetime

import pytest
from tiny_runs import content, write_toml

from reproductions import config as configs
from reproductions.errors import SuiteError


def _changed(values, key, value):
    *tables, last = key.split(".")
    table = values
    for name in tables:
        table = table[name]
    table[last] = value
    return values


def _read(tmp_path, values):
    return configs.read(write_toml(tmp_path / "some.toml", values))


@pytest.mark.parametrize("path", sorted(configs.CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_named_after_their_content(path):
    config = configs.read(path)
    assert path.stem == f"{config.method}-{config.dataset}"
    assert configs.find(config.method, config.dataset) == config


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
            "kind: .*'constant', 'linear' or 'cosine', got 'step'",
        ),
        ("minibatch", "training.momentum", 0.9, "momentum is an option of .*'sgd', got .*'adam'"),
        ("minibatch", "training.batch_size", 0, "training.batch_size: .*greater than 0, got 0"),
        ("online", "network.hidden", 12, "network.hidden: Input should be a valid array, got 12"),
        ("online", "network.hidden", [0], "network.hidden.0: .*greater than 0, got 0"),
        ("online", "network.threshold", -1, "network.threshold: Input should be greater than 0, got -1"),
        ("online", "network.threshold", float("inf"), "network.threshold: .*finite.*, got inf"),
        ("online", "network.t_max", 0, "network.t_max: Input should be greater than 0, got 0"),
        ("online", "network.init", [{"uniform": [0, 1]}], "init must hold 2 entries, .*, got 1"),
        ("online", "network.init", [{"uniform": [0, 1]}, {"normal": [0, -1]}], "normal.1: .* 0, got -1"),
        ("online", "network.init", [{"uniform": [0, 1]}, {"uniform": [2, 1]}], r"init\.1.*uniform"),
        ("online", "validation", -1, "validation: .* greater than or equal to 0, got -1"),
        ("online", "dataset", "cifar", "dataset: .*'digits', 'mnist' or 'fashion-mnist', got 'cifar'"),
        ("online", "method", 4, "method: Input should be a valid string, got 4"),
    ],
)
def test_a_bad_value_is_refused_with_file_key_value_and_what_is_allowed(
    tmp_path, protocol, key, value, message
):
    with pytest.raises(SuiteError, match=rf"some\.toml: .*{message}"):
        _read(tmp_path, _changed(content(protocol), key, value))


def test_a_missing_key_is_named(tmp_path):
    values = content()
    del values["training"]["gamma"]
    with pytest.raises(SuiteError, match=r"some\.toml: training\.gamma: missing key"):
        _read(tmp_path, values)


@pytest.mark.parametrize("text", [b"epochs = ", b"a = 1\na = 2\n", b'a = "\xff"\n'])
def test_broken_toml_names_the_file(tmp_path, text):
    path = tmp_path / "some.toml"
    path.write_bytes(text)
    with pytest.raises(SuiteError, match=r"some\.toml: not valid TOML"):
        configs.read(path)


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(SuiteError, match=str(tmp_path)):
        configs.read(tmp_path / name)


def test_an_unknown_method_or_data_set_lists_what_there_is():
    with pytest.raises(SuiteError, match=r"'nothing' on data set 'digits'; there are: .*s4nn on digits"):
        configs.find("nothing", "digits")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "other"),
        ("dataset", "mnist"),
        ("validation", 200),
        ("network.hidden", [13]),
        ("network.threshold", 101.0),
        ("network.t_max", 33),
        ("network.init", [{"uniform": [0.0, 15.0]}, {"uniform": [0.0, 48.5]}]),
        ("network.init", [{"uniform": [0.0, 15.0]}, {"normal": [0.0, 48.0]}]),
        ("network.dtype", "float32"),
        ("training.epochs", 4),
        ("training.learning_rates", [0.2, 0.3]),
        ("training.schedule", {"kind": "linear"}),
        ("training.schedule", {"kind": "cosine", "begin": 1}),
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
    ("key", "value"), [("description", "in other words"), ("training.dropout", 0), ("network.threshold", 100)]
)
def test_digest_ignores_description_and_spelling(tmp_path, key, value):
    assert _read(tmp_path, _changed(content(), key, value)).digest() == _read(tmp_path, content()).digest()


def test_with_epochs_changes_epochs_alone(tmp_path):
    config = _read(tmp_path, content(average_last=3))
    fewer = config.with_epochs(2)
    assert (fewer.training.epochs, fewer.training.average_last) == (2, 2)
    assert fewer == _read(tmp_path, content(epochs=2, average_last=2))
    assert config.with_epochs(None) == config
    with pytest.raises(SuiteError, match=r"--epochs: training\.epochs: .*greater than 0, got 0"):
        config.with_epochs(0)
