"""Search over ranges of a config with Optuna: held-out accuracy against spikes, the test set left closed."""

from __future__ import annotations

import copy
import functools
import json
import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from . import catalog
from .config import Config, Fraction, Strict, parsed, read_toml
from .errors import Diverged, SuiteError
from .locks import locked
from .records import atomic_write, require_writable
from .runner import Run, validate
from .sweep import Engine
from .sweep_progress import FileProgress

if TYPE_CHECKING:
    import optuna


# What a trial may keep.
HELD_OUT, DIVERGED = "held_out", "diverged"


class Range(Strict):
    """Numbers from `low` to `high`, whole if both are, or one of `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: list[bool | int | float | str] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Range:
        if self.choices is not None:
            if self.model_fields_set - {"choices"}:
                raise ValueError("choices go without low, high and log")
        elif self.low is None or self.high is None or self.low > self.high or (self.log and self.low <= 0):
            raise ValueError("needs choices, or low <= high (above 0 with log)")
        return self

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """A value for a trial."""
        if self.choices is not None:
            return trial.suggest_categorical(name, self.choices)
        assert self.low is not None
        assert self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


class Search(Strict):
    """What a file of ranges says.

    `ranges` are by the keys of the config, such as "training.gamma" or "training.learning_rates.0".
    `give_up` is how much held-out accuracy a config may lack to the best one if it has fewer spikes.
    """

    method: str
    dataset: str
    trials: PositiveInt
    seed: NonNegativeInt = 0
    give_up: Fraction = 0.0
    ranges: Annotated[dict[str, Range], Field(min_length=1)]


def read(path: Path) -> tuple[Search, dict[str, Any]]:
    """The search of a file, and the tables of the config that it starts from.

    Raises:
        SuiteError: names the file and what is wrong in it.
    """
    search = parsed(Search, read_toml(path), str(path))
    config = catalog.find(search.method, search.dataset)
    if not config.validation:
        raise SuiteError(f"{path}: the config of {search.method} on {search.dataset} holds out no images")
    every = config.model_dump(mode="json")
    for key in search.ranges:
        try:
            functools.reduce(operator.getitem, _names(key), every)
        except (LookupError, TypeError) as error:
            raise SuiteError(f"{path}: ranges: the config has no {key}") from error
    return search, config.model_dump(mode="json", exclude_unset=True)


def _names(key: str) -> list[Any]:
    """Of the tables and the value that a key such as "training.learning_rates.0" leads to."""
    return [int(part) if part.isdigit() else part for part in key.split(".")]


def _placed(content: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The tables with another value under a key."""
    changed: Any = copy.deepcopy(dict(content))
    table = changed
    *outer, last = _names(key)
    for name in outer:
        table = table.setdefault(name, {}) if isinstance(table, dict) else table[name]
    table[last] = value
    return changed  # type: ignore[no-any-return]


def with_values(content: Mapping[str, Any], values: Mapping[str, Any], source: str) -> Config:
    """The config with these values."""
    for key, value in values.items():
        content = _placed(content, key, value)
    return catalog.validated(dict(content), source)


def find(path: Path, folder: Path, engine: Engine, data_root: Path | None = None) -> optuna.Study:
    """Do the trials that are missing; what was interrupted is taken up from its checkpoint.

    Args:
        path: file of the ranges.
        folder: of the storage and the checkpoints.

    Raises:
        SuiteError: the file, the folder, or Optuna cannot be had; a trial that cannot be run; a process
            that was killed.
    """
    search, content = read(path)
    require_writable(folder)
    storage = storage_path(path, folder)
    with locked(storage.with_suffix(".lock"), "another process is at this search; wait for it"):
        study = _study(path, folder)
        _keep_to(study, "search", search.model_dump(mode="json", exclude={"trials", "give_up"}), storage)
        _keep_to(study, "config", catalog.validated(content, str(path)).digest(), storage)
        _take_up_what_was_interrupted(study)
        arguments = [(number, search, content, path, folder, data_root) for number in range(engine.workers)]
        with engine.open() as over:
            try:
                for failed in over(_work, *zip(*arguments, strict=True)):
                    if failed:
                        raise SuiteError(failed)
            except BrokenExecutor as error:
                raise SuiteError(
                    f"{path}: a process of the search was killed ({type(error).__name__}); search again, "
                    "and it goes on with its trials"
                ) from error
    return study


def storage_path(path: Path, folder: Path) -> Path:
    """Where the trials of a file of ranges are kept."""
    return folder / f"{path.stem}.journal"


def _study(path: Path, folder: Path) -> optuna.Study:
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as error:
        raise SuiteError('a search needs Optuna: pip install "ssnn-plugin[search]"') from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(storage_path(path, folder))))
    study = optuna.create_study(
        storage=storage, study_name=path.stem, directions=["maximize", "minimize"], load_if_exists=True
    )
    return study


def _keep_to(study: optuna.Study, what: str, value: Any, storage: Path) -> None:
    """Refuse a study that was begun with another value."""
    known = study.user_attrs.get(what, value)
    if isinstance(known, dict):
        known = {key: known[key] for key in known if key != "give_up"}  # which the first searches kept
    if known != value:
        raise SuiteError(f"{storage}: begun with another {what}; name another folder")
    study.set_user_attr(what, value)


def _take_up_what_was_interrupted(study: optuna.Study) -> None:
    """A trial that no process is at: its values are tried again, first."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _sampler(study: optuna.Study, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """One that repeats neither what it said before the search was interrupted nor what other workers say."""
    import numpy as np
    import optuna

    trials = len(study.get_trials(deepcopy=False))
    state = np.random.SeedSequence(seed, spawn_key=(trials, number)).generate_state(1)
    return optuna.samplers.TPESampler(seed=int(state[0]))


def _work(
    number: int, search: Search, content: dict[str, Any], path: Path, folder: Path, data_root: Path | None
) -> str | None:
    """Trials of a worker, until there are as many as asked for; return what is wrong, if anything."""
    import optuna
    from optuna.study import MaxTrialsCallback

    study = _study(path, folder)
    study.sampler = _sampler(study, search.seed, number)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        values = {key: within.suggest(trial, key) for key, within in search.ranges.items()}
        config = with_values(content, values, str(path))
        run = Run(
            config, f"{path.stem}-{config.digest()}", search.seed, results=folder, data_root=data_root,
            resume=True,
        )  # fmt: skip
        # Another worker may have drawn the same values: its numbers then stand for both.
        with locked(folder / f"{run.name}.lock"):
            try:
                outcome = _known(study, trial.params) or _outcome(run)
            except KeyboardInterrupt:
                study.enqueue_trial(trial.params)
                raise
            for name, value in outcome.items():
                trial.set_user_attr(name, value)
        if DIVERGED in outcome:
            raise optuna.TrialPruned
        return objectives(outcome[HELD_OUT])

    if sum(counted(study)) >= search.trials:
        return None
    try:
        study.optimize(objective, callbacks=[MaxTrialsCallback(search.trials, states=_ended())])
    except SuiteError as error:
        return str(error)
    return None


def _ended() -> tuple[optuna.trial.TrialState, optuna.trial.TrialState]:
    """States of a trial that came to its end, and of one that diverged, which the sampler takes for bad."""
    from optuna.trial import TrialState

    return TrialState.COMPLETE, TrialState.PRUNED


def counted(study: optuna.Study) -> tuple[int, int]:
    """How many trials came to their end, and how many diverged."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    complete, diverged = (states.count(state) for state in _ended())
    return complete, diverged


def _outcome(run: Run) -> dict[str, Any]:
    """What a trial keeps: what it did on the held-out images, or how it diverged."""
    try:
        found = validate(run, FileProgress(run))
    except Diverged as error:
        run.checkpoint.unlink(missing_ok=True)
        return {DIVERGED: str(error)}
    return {HELD_OUT: json.loads(found.model_dump_json(exclude={"example"}))}


def _known(study: optuna.Study, params: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome of a trial of the same values, if there is one."""
    for trial in study.get_trials(deepcopy=False):
        if trial.params == params and (outcome := _kept(trial)):
            return outcome
    return {}


def _kept(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in trial.user_attrs.items() if name in (HELD_OUT, DIVERGED)}


def objectives(held_out: Mapping[str, Any]) -> tuple[float, float]:
    """Accuracy by the rule "potential", and spikes of all neurons until the decision."""
    return held_out["accuracy"]["potential"], sum(held_out["until_decision"][1:])


def choose(trials: Sequence[optuna.trial.FrozenTrial], give_up: float) -> optuna.trial.FrozenTrial:
    """The trial with fewest spikes among those whose accuracy lacks at most `give_up` to the best."""
    best = max(trial.values[0] for trial in trials)
    good = [trial for trial in trials if trial.values[0] >= best - give_up]
    return min(good, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))


def write_chosen(path: Path, study: optuna.Study, output: Path) -> optuna.trial.FrozenTrial:
    """Write the config that a search chose, for `run --config`; return its trial.

    Raises:
        SuiteError: no trial came to its end.
    """
    search, content = read(path)
    complete, diverged = counted(study)
    if not complete:
        raise SuiteError(
            f"{path}: all of {diverged} trials diverged; give it lower learning rates to choose from"
        )
    trial = choose(study.best_trials, search.give_up)
    accuracy, spikes = trial.values
    chosen = with_values(content, trial.params, str(path)).model_dump(mode="json", exclude_unset=True)
    chosen["description"] = (
        f"{content['description']}; found by a search of {complete + diverged} trials: {accuracy:.2%} on "
        f"held-out images with {spikes:.0f} spikes"
    )
    with atomic_write(output) as file:
        file.write(to_toml(chosen))
    return trial


def to_toml(tables: Mapping[str, Any]) -> str:
    """TOML of the tables of a config: values first, then a table each, with tables inside written inline."""
    lines = [f"{key} = {_inline(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for key, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{key}]", *(f"{name} = {_inline(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    # A string or a truth value of JSON is one of TOML too.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
