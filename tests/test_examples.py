"""The example scripts run, and the page on hosts shows how they differ."""

import difflib
import os
import re
import runpy
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder as torchvision leaves it after a download, with a few random images."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", 48), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        header = struct.pack(">4i", 0x803, count, 28, 28), struct.pack(">2i", 0x801, count)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header[0] + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header[1] + labels.tobytes())
    return root


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script as from the command line, in this process, which has imported torch; what it prints."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*mnist*.py")))
def test_example_runs(script, mnist, run):
    printed = run(script, "--data-root", mnist, "--epochs", "1", "--num-steps", "8", "--batch-size", "16")
    assert re.search(r"epoch 1: test accuracy \d+\.\d+%", printed)
    if "single_spike" in script:
        assert re.search(r"same output spikes in the loop over 8 steps: (99|100)\.\d+%", printed)
        assert re.search(r"event by event: .* ms, \d+ times faster", printed)


@pytest.mark.parametrize("host", ["snntorch", "norse"])
def test_the_page_on_hosts_shows_what_changes(host):
    names = f"examples/{host}_mnist.py", f"examples/{host}_mnist_single_spike.py"
    before, after = ((ROOT / name).read_text().splitlines(keepends=True) for name in names)
    diff = "".join(difflib.unified_diff(before, after, *names, n=1))
    assert f"```diff\n{diff}```" in (ROOT / "docs" / "hosts.md").read_text()


@pytest.fixture
def folder(tmp_path):
    """Two classes of images that differ in size and mode."""
    for value, name in ((60, "cats"), (180, "dogs")):
        (tmp_path / name).mkdir()
        for n in range(10):
            mode = ("RGB", "L", "RGBA", "P")[n % 4]
            Image.new(mode, (20 + n, 30), value if mode in "LP" else (value, n, 0, 255)[: len(mode)]).save(
                tmp_path / name / f"{n}.png"
            )
    return tmp_path


@pytest.fixture
def learn(run, folder):
    return lambda: run("image_folder.py", folder, "--steps", 5)


def test_a_folder_of_mixed_sizes_and_modes_is_learned(learn):
    printed = learn()
    assert "2 classes, 16 images to learn from, 4 to test" in printed
    assert re.search(r"test accuracy \d+\.\d%", printed)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_broken_image_is_named(learn, folder, content):
    path = folder / "dogs" / "3.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(SystemExit, match=re.escape(f"{path}: not an image, damaged or cut short")):
        learn()


def test_an_empty_class_is_named(learn, folder):
    (folder / "mice").mkdir()
    with pytest.raises(FileNotFoundError, match="mice"):
        learn()


def test_one_class_only_is_refused(learn, folder):
    for path in (folder / "dogs").iterdir():
        path.unlink()
    (folder / "dogs").rmdir()
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        learn()


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    """To rounding: the sums of a batch are added up in another order."""
    learned, script = {}, str(EXAMPLES / "distributed.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for processes, launcher in ((1, []), (2, torchrun)):
        path = tmp_path / f"{processes}.pt"
        command = [sys.executable, *launcher, script, "--epochs", "2", "--save", path]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        accuracy = float(re.search(rf"{processes} processes: test accuracy (.*)%", done.stdout)[1])
        learned[processes] = torch.load(path), accuracy
    (one, accuracy), (two, of_two) = learned[1], learned[2]
    assert accuracy > 80
    assert of_two == pytest.approx(accuracy, abs=0.3)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-6, atol=1e-8)
