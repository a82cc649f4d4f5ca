"""What the figures of a record say."""

from tiny_runs import record

from reproductions import figures, records


def _with_test(**changes):
    run = record()
    return run.model_copy(update={"test": run.test.model_copy(update=changes)})


def _title_and_lines(run):
    figure = figures.raster(run)
    return figure.get_suptitle(), [line for axes in figure.axes for line in axes.lines]


def test_a_raster_says_which_output_decides_and_when():
    title, lines = _title_and_lines(record())
    assert title == "s4nn-mnist, seed 0: first test image, label 3, first spike of output 9 at 3"
    assert {tuple(line.get_xdata()) for line in lines} == {(3.0, 3.0)}


def test_a_raster_without_a_first_spike_that_decides_has_no_line():
    silent = records.Example(label=3, times=[[1.0] * 784, [2.0] * 400, [None] * 10])
    title, lines = _title_and_lines(_with_test(example=silent))
    assert title.endswith("label 3, no output spike")
    assert not lines
    repeatedly = _with_test(response_histogram=[0] * 15 + [10, 0])
    title, lines = _title_and_lines(repeatedly)
    assert title.endswith("label 3, decided after all steps")
    assert not lines
