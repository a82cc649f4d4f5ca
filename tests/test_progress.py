"""What a run shows while it runs."""

import io
import re

import pytest
from rich.console import Console
from tiny_runs import config, record

from reproductions.progress import ConsoleProgress
from reproductions.runner import Run

(EPOCH,) = record().history


def _output(epochs, begun=0, *, lines=20, terminal=False):
    """What is printed of a run, from an epoch on."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200)
    progress = ConsoleProgress(console, lines)
    progress.begin(Run(config(epochs=epochs), "some"), begun, 10)
    for epoch in range(begun + 1, epochs + 1):
        progress.advance(10)
        progress.end_epoch(EPOCH.model_copy(update={"epoch": epoch}))
    progress.end()
    return file.getvalue()


def _epochs(*arguments, **options):
    return [
        int(epoch) for epoch in re.findall(r"^epoch (\d+)/", _output(*arguments, **options), re.MULTILINE)
    ]


@pytest.mark.parametrize("epochs", [1, 3, 19, 20])
def test_a_short_run_tells_every_epoch(epochs):
    assert _epochs(epochs) == list(range(1, epochs + 1))


@pytest.mark.parametrize("epochs", [21, 30, 100, 999])
def test_a_long_run_tells_twenty_epochs_evenly(epochs):
    told = _epochs(epochs)
    assert len(told) == 20
    assert told[-1] == epochs
    gaps = [after - before for before, after in zip([0, *told], told, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_a_run_that_goes_on_tells_the_same_epochs():
    assert _epochs(100, 52) == [epoch for epoch in _epochs(100) if epoch > 52]
    assert "going on after epoch 52" in _output(100, 52)


def test_one_line_is_of_the_last_epoch():
    assert _epochs(60, lines=1) == [60]


def test_a_line_tells_loss_accuracy_and_spikes():
    assert (
        "epoch 1/1: loss 1.00e-01, train 50.00% lenient, spikes 10 + 1, silent 90% + 90%, dead 3 + 0"
        in _output(1)
    )


def test_a_terminal_has_a_bar_and_no_lines():
    output = _output(100, terminal=True)
    assert "100.0%" in output
    assert not re.search(r"epoch \d+/100: loss", output)
