"""The commands `otlabel train` and `otlabel transfer`. Nothing heavy is imported before one of them runs."""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otlabel.files import check_apart

if TYPE_CHECKING:
    from otlabel.training.config import Config

_CONFIG_HELP = "a TOML file, or the name of a recipe: digits, fashion_mnist, cifar10, ..."


def add_train(commands: Any) -> None:
    """The arguments of `otlabel train`."""
    parser = commands.add_parser(
        "train",
        help="train a model by self-labelling, from a TOML file",
        description="Train a model by self-labelling (SeLa, DeepCluster, UIC). Goes on where it was interrupted.",
        epilog="example: otlabel train digits -o runs/digits",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help=_CONFIG_HELP)
    _add_common(parser)
    parser.set_defaults(command=_train)


def add_transfer(commands: Any) -> None:
    """The arguments of `otlabel transfer`."""
    parser = commands.add_parser(
        "transfer",
        help="train a fresh model on labels that a run has left",
        description="Train a fresh model, of any architecture, on the labels that an earlier run has written.",
        epilog="example: otlabel transfer digits runs/digits/labels.h5 -o runs/transfer "
        "--set model.backbone=small_resnet --set model.options={}",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help=_CONFIG_HELP)
    parser.add_argument("labels", metavar="LABELS", type=Path, help="labels.h5 of a run on the same data")
    _add_common(parser)
    parser.set_defaults(command=_transfer)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", metavar="FOLDER", type=Path, required=True, help="where the run's files go, or are already")
    add("--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="change the config: train.epochs=40")
    add("--allow-code", action="store_true", help="let backbone = module:function of the config run: trust its author")
    add("--json", action="store_true", help="print the result as JSON, and no line an epoch")


def _train(arguments: argparse.Namespace) -> int:
    from otlabel.training.config import read_config

    return _run(arguments, _changed(read_config(arguments.config), arguments.set))


def _transfer(arguments: argparse.Namespace) -> int:
    from otlabel.training.config import read_config

    if not arguments.labels.is_file():
        raise FileNotFoundError(f"{arguments.labels} does not exist; a run of `otlabel train` writes labels.h5")
    config = read_config(arguments.config).with_values(
        labels__method="fixed", labels__file=str(arguments.labels.resolve())
    )
    return _run(arguments, _changed(config, arguments.set))


def _run(arguments: argparse.Namespace, config: Config) -> int:
    from otlabel.training.run import FILES, train

    if Path(arguments.config).is_file():  # else a recipe
        check_apart({f"the run's {name}": arguments.output / name for name in FILES}, {"CONFIG": arguments.config})
    report = None if arguments.json else _Table()
    run = train(config, arguments.output, report=report, allow_code=arguments.allow_code)
    if arguments.json:
        print(json.dumps(run.result, indent=2))
        return 0
    for name, value in run.result.items():
        figures = value if isinstance(value, dict) else {name: value}
        told = "  ".join(
            f"{key} {figure:.3f}" if isinstance(figure, float) else f"{key} {figure:,}"
            for key, figure in figures.items()
            if key != "n_samples"
        )
        print(f"{name + ':':<11} {told}" if isinstance(value, dict) else f"{'features:':<11} {told}")
    print(f"Labels, figures and the checkpoint are in {arguments.output}")
    return 0


class _Table:
    """A line an epoch, under a head that comes with the first of them."""

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, line: dict[str, Any]) -> None:
        if not self._begun:
            print(" epoch      loss        lr  relabelled    churn      nmi   seconds")
        self._begun = True

        def shown(name: str) -> str:
            return f"{line[name]:9.3f}" if name in line else f"{'-':>9}"

        print(
            f"{line['epoch']:6d} {shown('loss')} {line['lr']:9.2g} {line['relabellings']:11d} {shown('churn')}"
            f"{shown('nmi')} {line['seconds']:9.2f}",
            flush=True,
        )


def _changed(config: Config, changes: list[str]) -> Config:
    """The config with SECTION.KEY=VALUE applied, VALUE as TOML has it; a bare word is a text."""
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
    plain = {
        section: {key: value for key, value in values.items() if value is not None} for section, values in given.items()
    }
    return config_of(plain, "--set")
