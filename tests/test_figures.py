"""What the figures of a record say."""

import matplotlib.pyplot as plt
import pytest
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
    repeatedly = _with_test(response_histogram=[0] * 15 + [10, 0], right_histogram=None)
    title, lines = _title_and_lines(repeatedly)
    assert title.endswith("label 3, decided after all steps")
    assert not lines


def test_a_raster_says_the_class_of_one_of_several_outputs():
    run = record()
    several = run.model_copy(update={"config": run.config | {"network": {"per_class": 2}}})
    assert _title_and_lines(several)[0].endswith("first spike of output 9 (class 4) at 3")


def test_a_network_whose_answers_all_come_in_the_last_bin_fires_once():
    late = [0] * 15 + [10, 0]
    assert _with_test(response_histogram=late, right_histogram=late).test.neurons_fire == "once"
    assert _with_test(response_histogram=late, right_histogram=None).test.neurons_fire == "repeatedly"


def test_a_window_that_a_record_contradicts_is_not_known():
    inside = {"response_histogram": [0, 0, 5, 5, 0], "response_time": 11.0}
    assert _with_test(**inside).window == 16
    assert _with_test(**inside | {"response_time": 3.0}).window is None
    assert _with_test(**inside | {"response_time": 3.0, "window": 5.0}).window == 5.0


DRAWN = [
    figures.learning_curves,
    figures.accuracy_against_spikes,
    figures.response_times,
    figures.decision_times,
]


@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize("methods", [1, 29, 62])
@pytest.mark.filterwarnings("error")
def test_a_legend_of_many_methods_is_on_the_figure(draw, methods):
    figure = draw([record(name=f"method-{number:02}-mnist") for number in range(methods)])
    figure.canvas.draw()
    (axes,) = figure.axes
    width, height = figure.canvas.get_width_height()
    texts = axes.get_legend().get_texts()
    assert len(texts) >= methods
    for text in texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
    left, bottom, right, top = axes.get_window_extent().extents
    assert right - left > 0.3 * width
    assert top - bottom > 0.7 * height
    plt.close(figure)


def test_methods_that_are_drawn_have_colours_of_their_own():
    runs = [record(name=f"method-{number:02}-mnist") for number in range(60)]
    without = runs[0].test.model_copy(update={"right_histogram": None})
    runs[::2] = [run.model_copy(update={"test": without}) for run in runs[::2]]
    figure = figures.decision_times(runs)
    assert len({line.get_color() for line in figure.axes[0].lines}) == 30
    plt.close(figure)
