"""`otlabel train`: train a model by self-labelling, on a folder or by a TOML file."""

from __future__ import annotations

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otlabel.commands import options
from otlabel.progress import progress, say
from otlabel.storage.outputs import check_apart
from otlabel.text import duration

if TYPE_CHECKING:
    from otlabel.training.config import Config
    from otlabel.training.data import Images

WORTH_TELLING = 20  # seconds
CONFIG_HELP = "a TOML file, or the name of a recipe: digits, fashion_mnist, cifar10, ..."


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "train",
        run,
        is_shared=True,
        help="train a model by self-labelling, on a folder or by a TOML file",
        description="Train a model by self-labelling (SeLa, DeepCluster, UIC). Goes on where it was interrupted. With "
        "-k, settings suit the data by their shape and number; else they are those of a TOML file or a recipe.",
        epilog="examples: otlabel train my-images/ -k 10 -o run; otlabel train digits -o runs/digits",
    )
    parser.add_argument(
        "config",
        metavar="DATA_OR_CONFIG",
        help="with -k: a folder of images, a .npy file, digits, fashion-mnist, cifar10, cifar100, svhn; else "
        + CONFIG_HELP,
    )
    parser.add_argument("-k", "--classes", metavar="K", type=int, help="classes to find: settings then suit the data")
    parser.add_argument(
        "--time",
        metavar="TIME",
        help="with -k: take so long (90s, 10m, 1.5h) to try a few settings on a part of the data and train by the best",
    )
    add_run(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """What every run that trains is asked for."""
    options.output(parser, "FOLDER", "where the run's files go, or are already")
    options.changes(parser)
    options.allow_code(parser)
    options.progress(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and no line an epoch")


def run(arguments: argparse.Namespace) -> int:
    """Train by a config, or by settings that suit the data."""
    if arguments.classes is not None:
        return _train_suited(arguments)
    if arguments.time is not None:
        raise ValueError("--time is for data with -k; a config says itself how long it trains")
    if Path(arguments.config).is_dir() or arguments.config.endswith(".npy"):
        raise ValueError(f"{arguments.config} is data; say how many classes to find: -k 10")
    return train_by(arguments, changed(settings(arguments.config, shown=options.is_watched(arguments)), arguments.set))


def settings(name: str, *, shown: bool) -> Config:
    """The config that is named; torch, which it needs, takes a while."""
    with progress("reading the settings", shown=shown):
        from otlabel.training.config import read_config

        return read_config(name)


def suited_to(
    name: str, n_classes: int, changes: list[str], *, shown: bool, timed: bool = False
) -> tuple[Config, Images, str]:
    """The config that suits data, which are loaded first for their shape; the data, and what is assumed of them.

    What depends on the number of epochs goes by that of the changes.
    """
    if name.endswith(".toml"):
        raise ValueError(f"{name} is a config, which says itself how many classes its heads have; leave -k out")
    of_data = [change for change in changes if change.strip().startswith("data.")]
    with progress("reading the data", shown=shown):
        from otlabel.training.config import config_of
        from otlabel.training.setup import loaded
        from otlabel.training.suited import suited, told

        data = changed(config_of({"data": {"name": name}}), of_data)
        images = loaded(data)
    shape, section = tuple(images.train.shape), {"data": _without_none(data.to_dict())["data"]}
    config = changed(config_of(section | suited(shape, n_classes)), changes)
    config = changed(config_of(section | suited(shape, n_classes, config.train.epochs)), changes)
    return config, images, told(shape, config, timed=timed)


def _train_suited(arguments: argparse.Namespace) -> int:
    """Train by settings that suit the data."""
    from otlabel.training.folder import rank_of_process

    config, images, told = suited_to(
        arguments.config,
        arguments.classes,
        arguments.set,
        shown=options.is_watched(arguments),
        timed=arguments.time is not None,
    )
    if not arguments.json and rank_of_process() == 0:
        print(told)
    if arguments.time is not None:
        return _search(arguments, config, images)
    return train_by(arguments, config, images)


def _search(arguments: argparse.Namespace, config: Config, images: Images) -> int:
    from otlabel.commands.torchrun import check_alone
    from otlabel.training.search import search, seconds_of

    check_alone()
    report = None if arguments.json else _Table()
    more: dict[str, Any] = {} if arguments.json else {"say": _say}
    seconds = seconds_of(arguments.time)
    with _told_how_to_go_on(arguments.output / "search.json"), options.doing(arguments, "trying settings, training"):
        run = search(_without_none(config.to_dict()), images, seconds, arguments.output, report=report, **more)
    return _end(arguments, run.result)


def _say(text: str) -> None:
    say(text, sys.stdout)


def train_by(arguments: argparse.Namespace, config: Config, images: Images | None = None) -> int:
    """One run, and what came of it."""
    table, watched = None if arguments.json else _Table(config), options.is_watched(arguments)
    with _told_how_to_go_on(arguments.output / "checkpoint.pt"):
        with progress("getting ready", shown=watched):
            from otlabel.training.folder import FILES
            from otlabel.training.run import train

        if Path(arguments.config).is_file():  # else a recipe
            check_apart({f"the run's {name}": arguments.output / name for name in FILES}, {"CONFIG": arguments.config})
        run = train(
            config,
            arguments.output,
            report=table,
            allow_code=arguments.allow_code,
            images=images,
            progress=watched,
        )
    if not run.trainer.is_global_zero:
        return 0
    return _end(arguments, run.result)


@contextlib.contextmanager
def _told_how_to_go_on(kept: Path) -> Iterator[None]:
    """Say to whoever interrupts that nothing is lost, once there is a file to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        if kept.exists():
            print("Stopped; the same command goes on from here.", file=sys.stderr)
        raise


def _end(arguments: argparse.Namespace, result: dict[str, Any]) -> int:
    if arguments.json:
        import json

        print(json.dumps(result, indent=2))
        return 0
    _tell(result)
    print(f"Labels, figures and the checkpoint are in {arguments.output}")
    return 0


def _tell(result: dict[str, Any]) -> None:
    """A line for each kind of figures."""
    lines: dict[str, dict[str, Any]] = {"quality": {}, "classes": {}, "features": {}}
    for name, value in result.items():
        if isinstance(value, dict):
            lines[name] = value
        elif name in ("quality", "quality_at_the_end"):
            lines["quality"]["best" if name == "quality" else "at the end"] = value
        elif name == "sizes":
            counts = [count for head in value for count in head]
            lines["classes"] |= {"smallest": min(counts), "largest": max(counts)}
        elif isinstance(value, float):
            lines["classes" if name == "churn" else "features"][name] = value
    for name, figures in lines.items():
        told = [
            f"{key} {figure:.3f}" if isinstance(figure, float) else f"{key} {figure}"
            for key, figure in figures.items()
            if key != "n_samples" and figure is not None
        ]
        if told:
            print(textwrap.fill(f"{name + ':':<11} {'  '.join(told)}", 80, subsequent_indent=12 * " "))


class _Table:
    """A line an epoch, under a head that comes with the first of them, and once how long it will take.

    Args:
        config: of the run. None: somebody else tells of the time.
    """

    def __init__(self, config: Config | None = None) -> None:
        self._config, self._n_lines, self._is_timed = config, 0, config is None

    def __call__(self, line: dict[str, Any]) -> None:
        if not self._n_lines:
            _say(" epoch      loss        lr  relabelled    churn  quality      nmi   seconds")
        self._n_lines += 1

        def shown(name: str) -> str:
            return f"{line[name]:9.3f}" if name in line else f"{'-':>9}"

        _say(
            f"{line['epoch']:6d} {shown('loss')} {line['lr']:9.2g} {line['relabellings']:11d} {shown('churn')}"
            f"{shown('quality')}{shown('nmi')} {line['seconds']:9.2f}"
        )
        if self._n_lines > 1 and not self._is_timed:
            self._tell_time(line)

    def _tell_time(self, line: dict[str, Any]) -> None:
        """Once, after the first epoch that labels no more often than the others do: at first they label more."""
        assert self._config is not None
        n_epochs = self._config.train.epochs
        if line["relabellings"] > max(1.0, self._config.labels.n_relabels / n_epochs):
            return
        self._is_timed = True
        left = (n_epochs - line["epoch"]) * line["seconds"]
        if left >= WORTH_TELLING:
            _say(f"About {duration(left, 'min')} to go: {n_epochs} epochs.")


def changed(config: Config, changes: list[str]) -> Config:
    """The config with SECTION.KEY=VALUE applied, VALUE as TOML has it; a bare word is a text."""
    import tomllib

    from otlabel.training.config import config_of

    given = config.to_dict()
    for change in changes:
        name, equals, value = change.partition("=")
        section, _, key = name.strip().partition(".")
        if not (equals and section in given and key):
            raise ValueError(f"{change!r} is no change; write SECTION.KEY=VALUE, with a section of {', '.join(given)}")
        try:
            given[section][key] = tomllib.loads(f"value = {value}")["value"]
        except ValueError:
            given[section][key] = value
    return config_of(_without_none(given), "--set")


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    """Sections as a TOML file would have them, which knows no None."""
    return {
        section: {key: value for key, value in values.items() if value is not None} for section, values in given.items()
    }
