"""A network by its name: one of ours, of torchvision, of timm, or what a function of one's own returns."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from otlabel.training.networks.alexnet import alexnet
from otlabel.training.networks.libraries import LIBRARIES, of_library
from otlabel.training.networks.resnet import resnet18, resnet50, small_resnet
from otlabel.training.networks.small import mlp, small_convnet
from otlabel.training.networks.vgg import vgg16_bn

FACTORIES: dict[str, Callable[..., nn.Module]] = {
    one.__name__: one for one in (small_convnet, small_resnet, resnet18, resnet50, alexnet, vgg16_bn, mlp)
}
NAMES = tuple(FACTORIES)


def network(name: str, channels: int, *, allow_code: bool = False, **options: Any) -> nn.Module:
    """A network by its name.

    Args:
        name: one of `NAMES`; "torchvision:NAME" or "timm:NAME" for a network of these, without its last layer and with
            random weights; or "module:function" for a function of one's own, which takes the number of channels and
            returns a module with `feature_dim`, from the working folder or Python's path.
        channels: of the images; for "mlp" the number of features.
        allow_code: whether "module:function" may be imported and called, and options may name weights of others. A
            name may come from a stranger's recipe, and any function of any module is code that runs here.
        options: further arguments of that function, such as `width`.

    Raises:
        ValueError: there is no such name, it has no such options, what the function returns is no such module, or code
            is named that is not allowed.
        ImportError: there is no such module, or torchvision or timm cannot be imported.
    """
    module, separator, function = name.partition(":")
    if module in LIBRARIES and separator:
        return of_library(module, function, channels, options, allow_code=allow_code)
    if separator:
        return _made_by_code(name, module, function, channels, options, allow_code=allow_code)
    if name not in NAMES:
        raise ValueError(
            f"there is no network {name!r}: give one of {', '.join(NAMES)}, or torchvision:NAME, timm:NAME, "
            "module:function"
        )
    factory = FACTORIES[name]
    known = list(inspect.signature(factory).parameters)[1:]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}; its options are {', '.join(known)}")
    try:
        return factory(channels, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be made with the options {options}: {error}") from error


def _made_by_code(
    name: str, module: str, function: str, channels: int, options: dict[str, Any], *, allow_code: bool
) -> nn.Module:
    if not allow_code:
        raise ValueError(
            f"backbone = {name!r} would import the module {module!r} and call its function {function!r}; if you trust "
            "whoever wrote that, pass --allow-code (in Python, allow_code=True)"
        )
    with _working_folder_first():
        factory: Callable[..., Any] | None = getattr(importlib.import_module(module), function, None)
        if not callable(factory):
            raise ValueError(f"{module} has no function {function!r}")
        made = factory(channels, **options)
    if not isinstance(made, nn.Module) or not isinstance(getattr(made, "feature_dim", None), int):
        raise ValueError(f"{name} returned {type(made).__name__}: it must be an nn.Module with an integer feature_dim")
    return made


@contextlib.contextmanager
def _working_folder_first() -> Iterator[None]:
    """Let modules be found in the working folder, as `python` itself does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the code may have changed the path
            sys.path.remove(folder)
