"""The package where snnTorch, Norse or NIR are not installed: in a process that cannot import them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ssnn_plugin

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys

class Missing:
    blocked, asked = {"snntorch", "norse", "nir", "nirtorch"}, set()

    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in self.blocked:
            self.asked.add(package)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
found = {}

def outcome(name, call):
    try:
        found[name] = call()
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"

import torch
from torch import nn
import ssnn_plugin
from ssnn_plugin import IF, nn as spiking

found["asked on import"] = sorted(Missing.asked)
network = spiking.SpikeSequential(spiking.SpikeLinear(3, 2, IF(), t_max=8))
found["times"] = list(network(torch.zeros(1, 3)).shape)
no_neuron = nn.Sequential(nn.Linear(3, 2))
outcome("to_event_driven", lambda: ssnn_plugin.to_event_driven(no_neuron, t_max=8))
outcome("relu", lambda: ssnn_plugin.to_event_driven(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), t_max=8))
outcome("replace_neurons", lambda: ssnn_plugin.replace_neurons(no_neuron))
found["asked by functions"] = sorted(Missing.asked)
for name in ("snntorch", "norse", "nir"):
    outcome(name, lambda: __import__(f"ssnn_plugin.{name}"))
    outcome(f"{name} again", lambda: __import__(f"ssnn_plugin.{name}"))
for host in ("snntorch", "norse"):
    outcome(f"to_step_mode {host}", lambda: ssnn_plugin.to_step_mode(network, host))

Missing.blocked -= {"nir", "nirtorch"}
from ssnn_plugin.nir import from_nir, to_nir

found["nir alone"] = repr(from_nir(to_nir(network))) == repr(network)
outcome("nir to norse", lambda: from_nir(to_nir(network), host="norse"))

Missing.blocked.discard("norse")
model = from_nir(to_nir(network), host="norse")
again = ssnn_plugin.to_event_driven(model, t_max=8, silent_gradient=False)
found["norse alone"] = list(map(repr, again)) == list(map(repr, network))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    root = Path(ssnn_plugin.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_package_needs_none_of_them(found):
    assert found["asked on import"] == []
    assert found["asked by functions"] == []
    assert found["times"] == [1, 2]


def test_functions_on_host_models_answer_without_a_host(found):
    assert found["to_event_driven"].startswith("NoTimeMode: 0 (Linear) has no time mode: the model must end")
    assert found["relu"].startswith("NoTimeMode: 1 (ReLU) has no time mode: a network on spike times is made")
    assert found["replace_neurons"] == []


@pytest.mark.parametrize(
    ("name", "says"),
    [("snntorch", "needs snnTorch"), ("norse", "needs Norse"), ("nir", "needs NIR")],
)
def test_adapters_say_which_extra_to_install(found, name, says):
    expected = f"ImportError: ssnn_plugin.{name} {says}: pip install 'ssnn-plugin[{name}]'"
    assert found[name] == expected
    assert found[f"{name} again"] == expected
    if name != "nir":
        assert found[f"to_step_mode {name}"] == expected


def test_each_works_without_the_others(found):
    assert found["nir alone"] is True
    assert found["nir to norse"].startswith("ImportError: ssnn_plugin.norse needs Norse: pip install")
    assert found["norse alone"] is True
