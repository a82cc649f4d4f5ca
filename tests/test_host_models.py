from pathlib import Path

import host_models
import pytest

from ssnn_plugin import NoTimeMode, to_event_driven

PAGE = Path(__file__).parents[1] / "docs" / "host-models.md"


@pytest.fixture(scope="module")
def rows():
    return list(host_models.rows())


def test_most_models_of_the_hosts_have_an_event_driven_network(rows):
    converted = [row for row in rows if row.network is not None]
    assert len(rows) >= 21
    assert len(converted) >= 12
    for row in converted:
        assert row.report.ok, f"{row.host.name}: {row.report}"
        assert row.report.silent < 0.9 * row.report.outputs, row.host.name


def test_the_others_are_refused_by_module_reason_and_remedy(rows):
    for row in rows:
        if row.network is None:
            module, remedy = REFUSED[row.host.name]
            assert module in row.refusal
            assert remedy in row.refusal


REFUSED = {
    "snnTorch, tutorial 4: alpha neurons": ("1 (Alpha)", "Put a SingleSpike in its place"),
    "snnTorch, regression II: recurrent neurons": ("rlif1 (RLeaky)", "Put a SingleSpike in its place"),
    "snnTorch, spiking LSTM": ("1 (SLSTM)", "Put a SingleSpike in its place"),
    "Norse, MNIST task with its encoder": (
        "constant_current_encoder (ConstantCurrentLIFEncoder)",
        "Encode with ssnn_plugin.norse.LatencyEncoder",
    ),
    "Norse, CIFAR-10 task with noise": ("Cifar10 ", "Do so with what the network returns"),
    "Norse, memory task: LSNN": ("0 (LSNNRecurrent)", "Put a SingleSpikeIF in its place"),
}


def test_the_table_of_the_page_is_what_happens(rows):
    assert host_models.table(rows) in PAGE.read_text()


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (host_models.Tutorial5, "lif1"),
        (host_models.Tutorial6, "lif1"),
        (host_models.tutorial_6_sequential, "2"),
        (host_models.Audio, "lif1"),
    ],
)
def test_neurons_that_were_not_replaced_come_first(make, where):
    with pytest.raises(NoTimeMode, match=rf"^{where} \(Leaky\) .* may fire more than once.*replace_neurons"):
        to_event_driven(make().eval(), t_max=host_models.T)
