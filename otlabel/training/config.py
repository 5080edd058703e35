"""What a training run is: one TOML file, checked key by key before anything starts."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from otlabel.errors import FileFormatError
from otlabel.training.augment import Augmentation

Section = TypeVar("Section")
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Data:
    """[data]: which images or features."""

    name: str  # digits, fashion-mnist, cifar10, a folder of images, a .npy file; see `load_images`
    n_samples: int | None = None  # to train on, drawn at random; none: all
    validation: float = 0.0  # share of them set apart and judged on in place of the test images
    imbalance: Literal["full", "light", "heavy"] = "full"  # light: half of one class goes; heavy: 10 % ... 100 % stay
    size: int = 32  # pixels of a side that images of a folder are cut to
    centre: float = 1.0  # share of their shorter side that is cut out of the middle where no crop is drawn
    workers: int | None = None  # processes that read images of a folder; none: by the CPUs and the number of images
    seed: int = 0  # of these draws

    def __post_init__(self) -> None:
        if not 0 < self.centre <= 1:
            raise ValueError(f"centre is {self.centre}; give a share of the shorter side, above 0 to 1")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers is {self.workers}; give a number of processes, or 0 for none")
        _check_seed(self.seed)


@dataclass(frozen=True)
class Model:
    """[model]: backbone and heads."""

    backbone: str = "small_resnet"  # a name that `network` knows, or module:function
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the backbone
    heads: list[int] = field(default_factory=lambda: [128] * 10)  # classes of each head
    hidden: int | None = None  # width of a hidden layer in each head; none: linear heads
    sobel: bool = False  # whether the network is given the slopes of grey images, across and down, in place of colours

    def __post_init__(self) -> None:
        for key in ("name", "channels", "allow_code"):  # which are not the config's to say
            if key in self.options:
                raise ValueError(f"options has a key {key!r}, which is no option of a backbone; leave it out")
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}; give the width of a layer, or leave it out")


@dataclass(frozen=True)
class Labels:
    """[labels]: how labels are made, and when."""

    method: Literal["sinkhorn", "kmeans", "argmax", "random", "truth", "fixed"] = "sinkhorn"
    n_relabels: int = 100  # over the whole training
    fixed_epochs: int = 0  # last ones, on labels that are made of images as they are when these begin, and then stay
    schedule: Literal["quadratic", "logarithmic", "linear"] = "quadratic"
    epsilon: float = 0.04  # of sinkhorn; 1 / SeLa's lambda
    range: tuple[float, float] | None = None  # [lo, hi] times the fair share: class sizes anywhere between
    kl: float | None = None  # price of leaving the fair share
    abstain: float = 0.0  # share left unlabelled
    rounding: Literal["exact", "argmax"] = "exact"
    mode: Literal["calibrated", "eval", "train"] = "calibrated"  # of the model while features are extracted
    # Labels are of views, drawn as in training; with sinkhorn all are labelled once more at the end, as they are. With
    # argmax the views are those that were trained on. none: only with argmax; false, which any method takes, never.
    augmented: bool | None = None
    in_turn: bool = False  # each relabelling is of one head, and the next of the next
    store: Literal["memory", "hdf5"] = "memory"  # where features go; hdf5: features.h5 in the run's folder
    file: str = ""  # of method = "fixed": labels that an earlier run wrote

    def __post_init__(self) -> None:
        for name in ("epsilon", "kl"):
            number = getattr(self, name)
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{name} is {number}; give a positive number")
        if self.range is not None and not (0 <= self.range[0] <= min(self.range[1], 1) <= self.range[1] < math.inf):
            raise ValueError(f"range is {list(self.range)}; give [lo, hi] times the fair share, lo not above 1 or hi")
        if self.fixed_epochs < 0:
            raise ValueError(f"fixed_epochs is {self.fixed_epochs}; give a number of epochs, or 0")
        if not 0 <= self.abstain < 1:
            raise ValueError(f"abstain is {self.abstain}; give a share from 0 to below 1")
        if self.augmented and self.method not in ("sinkhorn", "argmax"):
            raise ValueError(
                f"augmented is of method = 'sinkhorn' or 'argmax', this is {self.method!r}; leave it out, or say false"
            )
        if self.method == "fixed" and not self.file:
            raise ValueError("method is 'fixed', but no file is given; name the labels that an earlier run wrote")

    @property
    def recorded(self) -> bool:
        """Whether labels are those that training itself has given, view by view."""
        return self.method == "argmax" and self.augmented is not False

    @property
    def of_views(self) -> bool:
        """Whether views are drawn to be labelled."""
        return self.method == "sinkhorn" and bool(self.augmented)


@dataclass(frozen=True)
class Train:
    """[train]: the training itself; whose the defaults are is in docs/training.md."""

    epochs: int = 400
    batch_size: int = 128  # of all devices together
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-5
    # Of the learning rate; steps: by 0.1 at each of `drops`; linear: to 0, as UIC does.
    decay: Literal["cosine", "steps", "linear", "none"] = "cosine"
    drops: list[int] = field(default_factory=lambda: [150, 300, 350])  # epochs
    rotation: float = 0.0  # weight of the loss of a 4-way rotation head (SeLa + Rot); 0: none
    uniform: bool | None = None  # classes count equally; none: for kmeans and argmax, as their authors do
    seed: int = 0
    threads: int | None = None  # of torch, on a CPU; part of what makes runs bit-identical. none: torch's choice

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; give at least 1")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; a batch needs 2 samples for its variance")
        for name in ("lr", "momentum", "weight_decay", "rotation"):
            number = getattr(self, name)
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} is {number}; give a number from 0 up")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; give at least 1, or leave it out")
        _check_seed(self.seed)


@dataclass(frozen=True)
class Evaluation:
    """[evaluation]: what is measured at the end, on frozen features."""

    knn: int = 50  # neighbours; 0: leave it out
    probe: bool = True  # linear probe
    baseline: bool = False  # the same of the untrained network, to compare with
    other: str = ""  # another labelled data set that features are judged on, too; none: no other
    other_samples: int | None = None  # of its training images, drawn at random; none: all

    def __post_init__(self) -> None:
        if self.knn < 0:
            raise ValueError(f"knn is {self.knn}; give a number of neighbours, or 0 to leave it out")


@dataclass(frozen=True)
class Config:
    """All sections of a run."""

    data: Data
    model: Model = field(default_factory=Model)
    labels: Labels = field(default_factory=Labels)
    train: Train = field(default_factory=Train)
    augment: Augmentation = field(default_factory=Augmentation)
    evaluation: Evaluation = field(default_factory=Evaluation)
    trainer: dict[str, Any] = field(default_factory=dict)  # [trainer]: arguments of Lightning's Trainer, by their names

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them."""
        return dataclasses.asdict(self)

    def with_values(self, **values: Any) -> Config:
        """A config with other values, named as section__key."""
        sections: dict[str, Any] = {}
        for name, value in values.items():
            section, _, key = name.partition("__")
            sections.setdefault(section, {})[key] = value
        changed: dict[str, Any] = {"trainer": self.trainer | sections.pop("trainer", {})}
        changed |= {name: dataclasses.replace(getattr(self, name), **keys) for name, keys in sections.items()}
        return dataclasses.replace(self, **changed)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed is {seed}; give a whole number from 0 up")


def read_config(name: str) -> Config:
    """The config in a TOML file, or a recipe that comes with otlabel, by its name.

    Raises:
        FileNotFoundError: neither is there; the recipes are listed.
        FileFormatError: no TOML, or a section, key or value that is not known; says where, and what was probably meant.
    """
    path = Path(name)
    if not path.is_file():
        path = RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise FileNotFoundError(f"{name!r} is no file and no recipe; the recipes are {known}")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{path} is no TOML: {error}") from error
    return config_of(given, str(path))


def config_of(given: dict[str, Any], where: str = "the config") -> Config:
    """A config of nested plain values, each key and type checked."""
    sections: dict[str, Any] = {}
    kinds = typing.get_type_hints(Config)
    for name, values in given.items():
        if name not in kinds:
            raise FileFormatError(f"{where} has a section [{name}]{_meant(name, kinds)}")
        if not isinstance(values, dict):
            raise FileFormatError(f"{where}: {name} must be a section, [{name}]")
        plain = name == "trainer"  # whose keys are looked at where Lightning is there to tell them
        sections[name] = dict(values) if plain else _section(kinds[name], values, f"{where}, [{name}]")
    if "data" not in sections:
        raise FileFormatError(f"{where} has no section [data] that names the data")
    return Config(**sections)


def _section(kind: type[Section], values: dict[str, Any], where: str) -> Section:
    hints = typing.get_type_hints(kind)
    checked = {}
    for key, value in values.items():
        if key not in hints:
            raise FileFormatError(f"{where} has a key {key!r}{_meant(key, hints)}")
        checked[key] = _value(value, hints[key], f"{where}, {key}")
    try:
        return kind(**checked)
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{where}: {error}") from error


def _meant(name: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f", which is not known; did you mean {near[0]!r}?" if near else f", which is not one of {', '.join(known)}"


def _value(value: Any, kind: Any, where: str) -> Any:
    """A value of the type that its key has; whole numbers will do for others, lists for pairs."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _value(value, next(part for part in parts if part is not type(None)), where)
    if origin is Literal:
        if value not in parts:
            raise FileFormatError(f"{where} is {value!r}; choose one of {', '.join(map(repr, parts))}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)) or (origin is tuple and len(value) != len(parts)):
            raise FileFormatError(f"{where} is {value!r}; give a list" + (" of two numbers" if origin is tuple else ""))
        return origin(_value(one, parts[0], where) for one in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = origin or kind
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise FileFormatError(f"{where} is {value!r}; give {'an' if wanted is int else 'a'} {wanted.__name__}")
    return value
