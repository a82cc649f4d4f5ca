import errno
import io
import re
import runpy
import sys
from xml.etree import ElementTree

import pytest
from tiny_runs import config, content, execute, record, with_response, write_toml

from reproductions import __main__ as cli
from reproductions import catalog, figures, records, sweep
from reproductions.errors import run_command_line
from reproductions.runner import Run

pytestmark = pytest.mark.usefixtures("cheap_runs")
METHODS = {"s4nn": "online", "s4nn-tuned": "minibatch"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, cheap_runs):
    """A results folder with tiny runs of both protocols."""
    folder = tmp_path_factory.mktemp("recorded")
    for method, protocol in METHODS.items():
        for seed in range(2):
            execute(Run(config(protocol), f"{method}-digits", seed, results=folder))
    return folder


@pytest.fixture
def tiny_suite(tmp_path, monkeypatch):
    """A suite whose only config is a tiny one on the digits."""
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setattr(catalog, "CONFIGS", folder)
    return write_toml(folder / "s4nn-digits.toml", content())


def test_what_a_killed_process_left_of_a_table_is_removed(recorded, call, tmp_path):
    (tmp_path / ".table.md.abc.partial").write_text("half of it")
    (tmp_path / ".table.md.swp").write_text("of an editor")
    code, _, _ = call("table", "--results-dir", recorded, "--output", tmp_path / "table.md")
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", ".table.md.swp"}


def _mtimes(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ["list", "run", "table", "plot"]),
        (("run",), ["METHOD", "--dataset", "--seed", "--epochs", "--data-root", "--resume", "--device"]),
        (("table",), ["--format", "--preset"]),
        (("plot",), ["--results-dir"]),
    ],
)
def test_help_names_what_there_is(call, command, words):
    code, out, _ = call(*command, "--help")
    assert code == 0
    assert all(word in out for word in words)


def test_list_shows_every_config(call, tmp_path):
    code, out, _ = call("list", "--results-dir", tmp_path)
    assert code == 0
    rows = [re.findall(r"[\w-]+", line)[:2] for line in out.splitlines()]
    assert all(list(known) in rows for known in catalog.available())


def test_list_is_whole_on_a_narrow_terminal(call, tmp_path):
    _, out, _ = call("list", "--results-dir", tmp_path, columns="60")
    lines = out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(line[-1] in "\u2513\u2503\u2529\u2502\u2518" for line in lines)


@pytest.mark.usefixtures("tiny_suite")
def test_list_shows_recorded_seeds(call, recorded):
    _, out, _ = call("list", "--results-dir", recorded)
    assert re.search(r"s4nn\W+digits\W+0, 1\W+small", out)
    write_toml(catalog.CONFIGS / "s4nn-digits.toml", content(gamma=4.0))
    _, out, _ = call("list", "--results-dir", recorded)
    assert re.search(r"s4nn\W+digits\W+\(0, 1\)\W+small", out), "of another config"


def test_run_records_and_prints_the_test_set(call, tmp_path, tiny_suite):
    arguments = ("run", "s4nn", "--dataset", "digits", "--seed", 3, "--results-dir", tmp_path)
    code, out, _ = call(*arguments)
    path = tmp_path / "s4nn-digits-seed3.json"
    read = records.read_record(path)
    assert code == 0
    assert str(path) in out
    assert all(f"epoch {k}/3: loss" in out for k in (1, 2, 3))
    assert f"{100 * read.test.accuracy['potential']:.2f}" in out

    call(*arguments, "--epochs", 2, "--config", tiny_suite)
    assert len(records.read_record(tmp_path / "s4nn-digits-epochs2-seed3.json").history) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing", "--dataset", "digits"), "'nothing' on data set 'digits'; there are: s4nn"),
        (("run", "s4nn", "--dataset", "cifar"), "data set 'cifar'; there are: s4nn on digits"),
        (("run", "s4nn", "--dataset", "digits", "--device", "gpu"), "must be cpu or cuda, got 'gpu'"),
        (("run", "s4nn", "--dataset", "digits", "--seed", -1), "--seed"),
        (("run", "s4nn", "--dataset", "digits", "--seed", 2**32), "--seed"),
        (("run", "s4nn", "--dataset", "digits", "--epochs", 0), "--epochs"),
        (("run", "s4nn", "--dataset", "digits", "--config", "absent.toml"), "absent.toml: No such file"),
        (("run", "s4nn"), "--dataset"),
        (("run", "--dataset", "digits"), "name one method"),
        (("run", "s4nn", "--dataset", "digits", "--method", "own.py"), "name one method"),
        (("run", "--dataset", "digits", "--method", "own.py"), "--method must be a Python file, got own.py"),
        (("table",), "no records there"),
        (("table", "--preset", "slow"), "--preset must be quick, got 'slow'"),
        (
            ("table", "--rule", "first"),
            "--rule must be one of lenient, first_index, potential, unique, got 'first'",
        ),
        (("table", "--columns", "method,speed"), "--columns must be of method, network, features,"),
        (("table", "--columns", "method,speed,"), "difference, got 'speed', ''"),
        (("table", "--wide", "--rule", "lenient"), "leave out --columns, --rule and --format"),
        (("table", "--wide", "--format", "csv"), "leave out --columns, --rule and --format"),
        (("table", "--overwrite"), "--overwrite goes with --preset quick"),
        (("plot",), "no records there"),
        (("sweep", "--methods", "s4nn,nothing"), "no config for method 'nothing'"),
        (("sweep", "--seeds", "4-2"), "--seeds must be numbers and ranges"),
        (("sweep", "--workers", 2, "--scheduler", "tcp://127.0.0.1:9"), "pass one of them"),
        (("report",), "no records there"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("tiny_suite")
def test_errors_are_told_and_exit_with_2(call, tmp_path, arguments, message):
    code, _, err = call(*arguments, "--results-dir", tmp_path / "results")
    assert code == 2
    assert message in re.sub(r"\x1b\[[0-9;]*m", "", err)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
def test_an_error_comes_without_traceback_through_python_m(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproductions", "table", "--results-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("reproductions", run_name="__main__", alter_sys=True)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path}: no records there")
    assert "Traceback" not in err


def test_a_config_of_another_method_is_refused(call, tmp_path):
    path = write_toml(tmp_path / "own.toml", content() | {"method": "own"})
    code, _, err = call("run", "s4nn", "--dataset", "digits", "--config", path, "--results-dir", tmp_path)
    assert code == 2
    assert "own.toml: a config of own on digits, not of s4nn on digits" in err


@pytest.mark.parametrize("name", ["[old]", "[/old]"])
def test_brackets_in_a_path_are_shown_as_they_are(call, tmp_path, name):
    code, _, err = call("table", "--results-dir", tmp_path / name)
    assert code == 2
    assert f"{name}: no records there" in err


@pytest.mark.parametrize(
    ("style", "sign"),
    [("text", "──"), ("md", "|:--"), ("tex", r"\toprule"), ("csv", "method,"), ("html", "<td>")],
)
def test_table_prints_and_writes_every_format(call, recorded, tmp_path, style, sign):
    code, out, _ = call("table", "--format", style, "--results-dir", recorded)
    assert code == 0
    assert sign in out
    assert out.count("64-12-10") == 2
    call("table", "--format", style, "--results-dir", recorded, "--output", tmp_path / "table")
    assert (tmp_path / "table").read_text(encoding="utf-8") == out


def test_table_of_mnist_has_the_published_numbers(call, tmp_path):
    records.write_record(tmp_path / "some.json", record(0.90))
    _, brief, _ = call("table", "--results-dir", tmp_path)
    assert re.search(r"s4nn +784-400-10 .* 97\.4 P +-6\.40$", brief, re.MULTILINE)
    _, wide, _ = call("table", "--wide", "--results-dir", tmp_path)
    assert "falls short by 7.40" in wide
    for out in (brief, wide):
        assert "1910.09495" in out.partition("mnist: published")[2]


@pytest.fixture
def of_two_methods(tmp_path):
    """A results folder with records of two methods on two data sets."""
    for method, dataset in (("s4nn", "mnist"), ("ts4tl", "mnist"), ("s4nn", "digits")):
        made = record(name=f"{method}-{dataset}", dataset=dataset, method=method)
        records.write_record(tmp_path / f"{method}-{dataset}-seed0.json", made)
    return tmp_path


def test_table_and_figures_of_some_methods_and_data_sets(call, of_two_methods, tmp_path):
    options = ["--results-dir", of_two_methods, "--methods", "s4nn", "--datasets", "mnist"]
    code, out, _ = call("table", *options)
    assert code == 0
    assert "mnist: recorded runs" in out
    assert "digits: recorded runs" not in out
    assert not re.search(r"^ts4tl .* 1 ", out.partition("published\n")[0], re.MULTILINE)
    code, out, _ = call("plot", "--output-dir", tmp_path / "figures", *options)
    assert code == 0
    drawn = " ".join(path.name for path in (tmp_path / "figures").iterdir())
    assert "s4nn-mnist" in drawn
    assert "ts4tl" not in drawn
    assert "digits" not in drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "s4nn,unknown"], "--methods must be recorded, of s4nn, ts4tl, got 'unknown'"),
        (["--datasets", "eth80"], "--datasets must be recorded, of digits, mnist, got 'eth80'"),
        (["--methods", "ts4tl", "--datasets", "digits"], "no record of ts4tl on digits"),
        (["--methods", "s4nn,ts4tl", "--datasets", "digits"], "no record of ts4tl on digits"),
        (["--methods", "ts4tl", "--datasets", "mnist,digits"], "no record of ts4tl on digits"),
    ],
)
def test_what_is_not_recorded_is_named(call, of_two_methods, options, message):
    code, _, error = call("table", "--results-dir", of_two_methods, *options)
    assert code == 2
    assert message in error


def test_the_quick_preset_refuses_names_before_it_trains(call, tmp_path):
    for options, message in (
        (["--methods", "s4n"], "s4n"),
        (["--datasets", "mnist"], "--preset quick is of digits, got --datasets mnist"),
    ):
        code, _, error = call("table", "--preset", "quick", "--results-dir", tmp_path / "none", *options)
        assert code == 2
        assert message in error
        assert not list(tmp_path.rglob("*.json"))


def test_runs_of_other_code_are_rows_of_their_own(call, tmp_path):
    made = [
        record(seed=0, method_sha256="1" * 64, method="own", name="own-mnist"),
        record(seed=1, method_sha256="2" * 64, method="own", name="own-mnist"),
        record(seed=0),
        record(seed=0, config_hash="b" * 12),
    ]
    for number, one in enumerate(made):
        records.write_record(tmp_path / f"{number}.json", one)
    code, out, _ = call("table", "--results-dir", tmp_path, "--format", "csv", "--columns", "method,seeds")
    assert code == 0
    assert out.splitlines()[1:] == [
        f"own ({'1' * 12}),1,mnist", f"own ({'2' * 12}),1,mnist",
        f"s4nn ({'a' * 12}),1,mnist", f"s4nn ({'b' * 12}),1,mnist",
    ]  # fmt: skip
    _, out, _ = call("table", "--results-dir", tmp_path, "--format", "tex", "--cite")
    assert f"s4nn ({'b' * 12}) \\cite{{kheradpisheh2020temporal}}" in out
    records.write_record(tmp_path / "copy.json", made[0])
    code, _, error = call("table", "--results-dir", tmp_path)
    assert code == 2
    assert re.search(
        r"0\.json and .*copy\.json are records of one run: keep one of them", " ".join(error.split())
    )


def test_the_wide_table_is_the_one_in_markdown(call, recorded):
    _, wide, _ = call("table", "--wide", "--results-dir", recorded)
    assert wide == call("table", "--format", "md", "--results-dir", recorded)[1]


@pytest.mark.parametrize("terminal", ["", "200"])
def test_the_table_fits_100_columns(call, tmp_path, terminal):
    long = record(network_name="32C3p1-P2-64C3p1-P2-128C3p1-P2-256", name="sparse-ramp-augmented-mnist")
    records.write_record(tmp_path / "some.json", long)
    _, out, _ = call("table", "--results-dir", tmp_path, columns=terminal)
    assert max(map(len, out.splitlines())) <= 100
    heading = re.split(" {2,}", out.splitlines()[1].strip())
    assert heading == [
        "method",
        "network",
        "seeds",
        "potential %",
        "spikes",
        "response",
        "published",
        "difference",
    ]


def test_columns_and_rule_choose_what_is_shown(call, recorded):
    choice = ("--columns", "method,accuracy,ties", "--rule", "unique", "--results-dir", recorded)
    for style in ("text", "md", "html"):
        _, out, _ = call("table", "--format", style, *choice)
        assert "unique %" in out
        assert "ties / silent %" in out
        assert "potential %" not in out
        assert "64-12-10" not in out
    _, out, _ = call("table", "--format", "csv", *choice)
    assert out.splitlines()[0] == "method,unique %,unique % deviation,ties %,silent %,data set"


def test_an_unknown_format_is_refused_with_those_there_are(call, recorded):
    code, out, err = call("table", "--format", "xyz", "--results-dir", recorded)
    assert (code, out) == (2, "")
    assert "--format must be one of text, md, tex, csv, html, got 'xyz'" in err


@pytest.mark.usefixtures("tiny_suite")
def test_the_quick_preset_trains_what_is_missing(call, tmp_path, monkeypatch):
    quick = ("table", "--preset", "quick", "--workers", 1, "--results-dir", tmp_path / "quick")
    code, out, err = call(*quick)
    assert code == 0
    assert "3/3 s4nn-digits seed 2: recorded" in err
    assert re.search(r"s4nn +64-12-10 +3 ", out)
    before = _mtimes(tmp_path / "quick")
    assert sorted(before) == [f"s4nn-digits-seed{seed}.json" for seed in range(3)]
    assert call(*quick)[1] == out
    assert _mtimes(tmp_path / "quick") == before

    write_toml(catalog.CONFIGS / "s4nn-digits.toml", content(gamma=4.0))
    code, _, err = call(*quick)
    assert code == 2
    assert "this run is recorded already" in err
    assert _mtimes(tmp_path / "quick") == before, "what stands in a folder of the user's is kept"
    monkeypatch.setattr(cli, "QUICK", tmp_path / "quick")
    call(*quick)
    hashes = {read.config_hash for read in records.read_all(tmp_path / "quick")}
    assert hashes == {config(gamma=4.0).digest()}

    monkeypatch.setattr(sweep, "sweep", lambda runs, engine, board: [])
    call(*quick, "--overwrite")
    assert len(records.read_all(tmp_path / "quick")) == 3, "until they are overwritten"


@pytest.mark.parametrize("wrong", [("--format", "xyz"), ("--output", "/dev/null/table.md")])
@pytest.mark.usefixtures("tiny_suite")
def test_the_quick_preset_refuses_a_wrong_option_before_it_trains(call, tmp_path, wrong):
    code, _, err = call("table", "--preset", "quick", "--results-dir", tmp_path / "quick", *wrong)
    assert code == 2
    assert "seed" not in err


def test_plot_draws_every_figure_as_png_and_svg(call, recorded, tmp_path):
    code, out, _ = call("plot", "--results-dir", recorded, "--output-dir", tmp_path / "figures")
    assert code == 0
    stems = [
        "accuracy-spikes-digits",
        "learning-curves-digits",
        "raster-s4nn-digits",
        "raster-s4nn-tuned-digits",
        "decision-times-digits",
        "response-times-digits",
    ]
    drawn = sorted((tmp_path / "figures").iterdir())
    assert [path.name for path in drawn] == sorted(
        f"{stem}.{ending}" for stem in stems for ending in ("png", "svg")
    )
    assert all(str(path) in out for path in drawn)
    for path in drawn:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            assert len(list(ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}path"))) > 10


def test_report_writes_a_page(call, recorded, tmp_path):
    page = tmp_path / "pages" / "report.html"
    code, out, _ = call("report", "--results-dir", recorded, "--output", page)
    assert code == 0
    assert f"written: {page}" in out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_plot_refuses_a_folder_that_is_a_file(call, recorded, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = call("plot", "--results-dir", recorded, "--output-dir", tmp_path / "file")
    assert code == 2
    assert f"{tmp_path / 'file'}: nothing can be written there" in err


def test_figures_show_every_name():
    runs = [record(name=f"run{number}-mnist") for number in range(12)]
    (axes,) = figures.learning_curves(runs).axes
    assert len(axes.lines) == 12


def test_response_times_of_different_windows_can_be_drawn_together():
    figures.response_times([record(t_max=16), record(seed=1, t_max=32, config_hash="b" * 12)])


def test_response_times_fall_where_they_were():
    half = with_response(record(t_max=16), [0] * 4 + [10] + [0] * 12)
    (axes,) = figures.response_times([half]).axes
    values, edges, _ = axes.patches[0].get_data()
    assert [(edge, value) for edge, value in zip(edges, values, strict=False) if value > 1e-9] == [
        (4 / 16, pytest.approx(50)), (4.5 / 16, pytest.approx(50)),
    ]  # fmt: skip


@pytest.mark.parametrize("t_max", [4, 17])
def test_response_times_show_every_sample(t_max):
    run = with_response(record(t_max=t_max), [0] * (t_max - 1) + [10, 0])
    (axes,) = figures.response_times([run]).axes
    (stairs,) = axes.patches
    assert sum(stairs.get_data().values) == pytest.approx(100)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_list_on_a_terminal_without_all_characters(tiny_suite, tmp_path, encoding, monkeypatch):
    write_toml(tiny_suite, content() | {"description": "small digits, \u2264 3 epochs"})
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "argv", ["reproductions", "list", "--results-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run_command_line(cli.app)
    assert not ended.value.code
    assert rb"\u2264 3 epochs" in terminal.buffer.getvalue()


def test_an_error_of_the_disk_comes_without_traceback(call, recorded, tmp_path, monkeypatch):
    def full(self, file, **options):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    code, _, err = call("plot", "--results-dir", recorded, "--output-dir", tmp_path / "figures")
    assert code == 2
    assert "learning-curves-digits.png: cannot be written (No space left on device)" in err
    assert list((tmp_path / "figures").iterdir()) == []


@pytest.mark.usefixtures("tiny_suite")
def test_sweep_records_every_seed_and_tells_failures(call, tmp_path):
    arguments = ("sweep", "--methods", "s4nn", "--datasets", "digits", "--results-dir", tmp_path / "results")
    code, out, err = call(*arguments, "--seeds", "0,2-3")
    assert code == 0
    assert "3 runs recorded in" in out
    assert [read.seed for read in records.read_all(tmp_path / "results")] == [0, 2, 3]
    assert "3/3 s4nn-digits seed 3: recorded" in err

    write_toml(catalog.CONFIGS / "s4nn-digits.toml", content(gamma=4.0))
    code, _, err = call(*arguments, "--seeds", "0-1")
    assert code == 2
    assert "1 of 2 runs failed" in err
    assert "s4nn-digits seed 0: " in err
    assert [read.seed for read in records.read_all(tmp_path / "results")] == [0, 1, 2, 3]
