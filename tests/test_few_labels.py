"""Few labelled images: the draw, the three classifiers, table and figure."""

import pytest
import torch

from reproductions import datasets, few_labels
from reproductions.__main__ import app
from reproductions.datasets import Form, Images
from reproductions.errors import SuiteError
from reproductions.features import Features
from reproductions.figures import draw_few_labels
from reproductions.locks import locked
from reproductions.tables import few_labels_table, shown


def _images(sizes=(30, 12), seed=0):
    y = torch.cat([torch.full((n,), label) for label, n in enumerate(sizes)])
    x = torch.randint(0, 100, (len(y), 16), generator=torch.Generator().manual_seed(seed))
    x[y == 1, :8] += 150
    return Images(x.to(torch.uint8), y, 255, len(sizes), (1, 4, 4))


def test_the_draw_takes_as_many_of_each_class():
    images = _images()
    chosen = few_labels.draw(images, 5, 0)
    assert images.y[chosen].bincount().tolist() == [5, 5]
    assert len(chosen.unique()) == 10
    assert torch.equal(chosen, few_labels.draw(images, 5, 0))
    assert not torch.equal(chosen, few_labels.draw(images, 5, 1))
    assert images.y[few_labels.draw(images, 20, 0)].bincount().tolist() == [20, 12]
    assert len(few_labels.draw(images, None, 0)) == 42


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    settings = few_labels.read()
    network = settings.network.model_copy(update={"steps": 60, "learning_rate": 1e-2})
    settings = settings.model_copy(update={"per_class": [5], "network": network})
    parts = {"train": _images(), "test": _images((20, 20), seed=1)}
    forms = []

    def load(name, split, data_root, cache, seed, form):
        forms.append(form)
        return parts[split]

    seen, form, cache = [], Form(size=(4, 4)), tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", load)
        record = few_labels.study(
            "easy", form, Features(extractor="raw"), settings, 2, None, cache, seen.append
        )
    assert record.results == seen
    assert set(forms) == {form}
    return record


def test_every_classifier_learns_an_easy_task_from_few_labels(record):
    assert len(record.results) == 2 * 2 * 3
    assert {result.classifier for result in record.results} == set(few_labels.CLASSIFIERS)
    assert all(result.accuracy > 0.9 for result in record.results)
    assert {result.labelled for result in record.results} == {10, 42}


def test_an_extractor_that_needs_more_is_refused(tmp_path):
    command = ["few-labels", "--dataset", "eth80", "--extractor", "stdp", "--results-dir", str(tmp_path)]
    with pytest.raises(SuiteError, match="few-labels: stdp goes with extractor 'stdp'"):
        app(command, standalone_mode=False)


def test_sizes_without_an_image_for_each_fold_are_refused(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(few_labels.SETTINGS.read_text().replace("per_class = [", "per_class = [2, "))
    with pytest.raises(
        SuiteError, match=r"per_class must be at least logistic_regression\.folds = 3, got \[2\]"
    ):
        few_labels.read(file)


def test_size_and_colour_of_the_images_come_from_the_command_line(monkeypatch, tmp_path):
    forms = []

    def load(name, split, data_root, cache, seed, form):
        forms.append(form)
        raise SuiteError("far enough")

    monkeypatch.setattr(datasets, "load", load)
    options = ["--image-size", "40", "64", "--grey"]
    commands = [
        ["few-labels", "--dataset", "eth80", "--extractor", "raw", "--results-dir", str(tmp_path)],
        ["pretrain", "--on", "eth80", "--output", str(tmp_path / "net.pt")],
    ]
    for command in commands:
        with pytest.raises(SuiteError, match="far enough"):
            app([*command, *options], standalone_mode=False)
        with pytest.raises(SuiteError, match="far enough"):
            app(command, standalone_mode=False)
    assert forms == [Form(size=(40, 64), grey=True), Form()] * 2


@pytest.mark.parametrize("name", ["few-labels", "pretrain"])
def test_a_file_that_another_process_writes_or_wrote_is_refused(monkeypatch, tmp_path, name):
    monkeypatch.setattr(datasets, "load", lambda *_: pytest.fail("begins to work"))
    path, options = {
        "few-labels": (
            tmp_path / "few-labels" / "eth80.json",
            ["--dataset", "eth80", "--results-dir", str(tmp_path)],
        ),
        "pretrain": (tmp_path / "net.pt", ["--on", "eth80", "--output", str(tmp_path / "net.pt")]),
    }[name]
    with (
        locked(path.with_name(f"{path.name}.lock")),
        pytest.raises(SuiteError, match="another process is at this file"),
    ):
        app([name, *options], standalone_mode=False)
    path.touch()
    with pytest.raises(SuiteError, match=f"{path.name}: exists already; pass --overwrite"):
        app([name, *options], standalone_mode=False)


def test_table_and_figure_show_every_size(record, tmp_path):
    table = shown(few_labels_table(record))
    assert table["labelled per class"].tolist() == ["5", "all"]
    assert all(" ± " in value for value in table["single-spike %"])
    assert all(value.count(" + ") == 2 for value in table["spikes: input + hidden + output"])
    written = draw_few_labels(record, tmp_path)
    assert [path.name for path in written] == ["few-labels-easy.png", "few-labels-easy.svg"]
    assert all(path.stat().st_size > 1000 for path in written)
