"""Trained networks that are kept in files."""

import pytest
import torch
from test_converted_relu import content
from tiny_runs import Quiet, config
from typer.testing import CliRunner

from benchmarks import relu
from reproductions import datasets, evaluation, records, runner, trained
from reproductions.__main__ import app
from reproductions.catalog import validated
from reproductions.errors import SuiteError
from reproductions.runner import Run

pytestmark = pytest.mark.usefixtures("cheap_runs")


def kept(folder, chosen, **options):
    run = Run(chosen, "tiny", seed=3, results=folder, keep=folder / "net.pt", **options)
    return run, runner.execute(run, Quiet())


def converted():
    training = {"learning_rates": [0.05], "batch_size": 32, "epochs": 1, "schedule": {"kind": "linear"}}
    return validated(content(network={"normalize": "pooled"}, training=training), "tiny")


@pytest.mark.parametrize("kind", ["online", "minibatch", "converted_relu"])
def test_a_kept_network_decides_as_the_run_did(tmp_path, kind):
    chosen = converted() if kind == "converted_relu" else config(kind)
    run, record = kept(tmp_path, chosen)
    assert not run.checkpoint.exists()
    network = trained.load(run.keep)
    assert (network.name, network.seed, network.config) == ("tiny", 3, chosen)
    test = datasets.load("digits", "test")
    assert evaluation.evaluate(network.method, network.config, test) == record.test


def test_a_file_in_the_way_stays_unless_it_may_be_overwritten(tmp_path):
    (tmp_path / "net.pt").write_text("mine")
    with pytest.raises(
        SuiteError, match=r"net\.pt: exists; name another file to keep the network in, or remove it"
    ):
        kept(tmp_path, config())
    assert (tmp_path / "net.pt").read_text() == "mine"
    kept(tmp_path, config(), overwrite=True)
    trained.load(tmp_path / "net.pt")


def test_a_run_that_goes_on_overwrites_no_file(tmp_path):
    path = tmp_path / "net.pt"
    path.write_text("mine")
    for resume in (True, False):
        run = Run(config(), "tiny", results=tmp_path, keep=path, resume=resume)
        with pytest.raises(SuiteError, match=r"net\.pt: exists; name another file"):
            runner.execute(run, Quiet())
    with pytest.raises(SuiteError, match=r": is a folder; name a file"):
        runner.execute(Run(config(), "tiny", results=tmp_path, keep=tmp_path, overwrite=True), Quiet())


def test_a_run_that_was_killed_behind_its_record_ends(tmp_path, monkeypatch):
    run = Run(config(), "tiny", results=tmp_path, keep=tmp_path / "net.pt", resume=True)
    saved = []
    monkeypatch.setattr(records, "write_checkpoint", lambda path, content: saved.append((path, content)))
    runner.execute(run, Quiet())
    monkeypatch.undo()
    records.write_checkpoint(*saved[-1])
    runner.execute(run, Quiet())
    assert not run.checkpoint.exists()
    trained.load(run.keep)


def test_what_is_no_trained_network_is_refused(tmp_path):
    run, _ = kept(tmp_path, config())
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(SuiteError, match=r"text\.pt: damaged, or no file of tensors"):
        trained.load(tmp_path / "text.pt")
    records.save_tensors(tmp_path / "other.pt", {"name": "tiny"})
    with pytest.raises(SuiteError, match=r"other\.pt: holds no trained network, which `run --keep` writes"):
        trained.load(tmp_path / "other.pt")
    saved = records.load_tensors(run.keep)
    saved["state"] = {}
    records.save_tensors(tmp_path / "old.pt", saved)
    with pytest.raises(SuiteError, match=r"old\.pt: does not fit this version of the method \(KeyError"):
        trained.load(tmp_path / "old.pt")


def test_the_command_line_keeps_a_network(tmp_path):
    path = tmp_path / "folder" / "net.pt"
    command = ["run", "s4nn-tuned", "--dataset", "digits", "--epochs", "1", "--results-dir", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--keep", str(path)])
    assert result.exit_code == 0, result.output
    assert trained.load(path).name == "s4nn-tuned-digits-epochs1"


def test_a_benchmark_compares_both_networks_on_all_test_images(tmp_path):
    run, record = kept(tmp_path, converted())
    network = relu.OfTheSuite(run.keep, None)
    columns = [list(column.cells) for column in network.agreement().columns]
    assert columns[0] == ["float64", "float32"]
    assert 0 < float(columns[1][0]) < 1e-13 < float(columns[1][1]) < 1e-5
    for accuracies in columns[2:5]:
        assert accuracies == [f"{100 * record.test.accuracy['potential']:.2f}"] * 2
    assert columns[6] == [f"{sum(record.test.total[1:-1]):.0f}"] * 2
    assert all(0 < int(fewer) < 0.9 * int(every) for every, fewer in zip(*columns[6:], strict=True))
    assert set(network.timings(8, 3)) == set(relu.runs("MobileNetV2", torch.rand(2, 3, 32, 32)))


def test_a_benchmark_refuses_another_method(tmp_path):
    run, _ = kept(tmp_path, config())
    with pytest.raises(SuiteError, match=r"net\.pt: must hold a converted-relu, got s4nn"):
        relu.OfTheSuite(run.keep, None)
