"""`otlabel probe`: what each layer of a trained network is worth."""

from __future__ import annotations

import argparse
from typing import Any

from otlabel.commands import options
from otlabel.commands.printing import print_json
from otlabel.storage.atomic import replacing
from otlabel.storage.outputs import Output, check_outputs


def add(commands: Any) -> None:
    """The command and its arguments."""
    parser = options.add_command(
        commands,
        "probe",
        run,
        help="what each layer of a trained network is worth",
        description="Judge a run's frozen network by true classes: linear probes after each layer (top-1, top-5), "
        "nearest neighbours, a few samples a class, and the classes that its heads find in images it has not seen.",
        epilog="example: otlabel probe runs/digits --plot probes.png",
    )
    add = parser.add_argument
    options.saved_run(parser)
    add("--data", metavar="DATA", help="judge by these images, named as in a config; default those of the run")
    add("--layers", metavar="NAME,NAME", help="stages or modules that are probed; default all stages")
    add("--epochs", type=options.count, help="of the probes' training; default 36, or what makes 5000 steps")
    add("--batch-size", metavar="N", type=options.count, default=64, help="of the probes' training (%(default)s)")
    add("--crops", type=int, choices=(1, 10), default=1, help="crops of each test image (%(default)s)")
    add("--plot", metavar="OUT.png", type=options.path, help="draw the accuracy after each layer")
    options.seed(parser, "of the probes' first weights and crops")
    options.force(parser, "an existing picture")
    options.progress(parser)
    options.as_json(parser, "all figures")


def run(arguments: argparse.Namespace) -> int:
    """Judge, then tell and draw: the picture's path is tried before the work starts."""
    if arguments.plot is not None:
        inputs = {"RUN": str(arguments.run), "--data": arguments.data}
        check_outputs([Output("--plot", arguments.plot, (".png",))], inputs, force=arguments.force)

    with options.doing(arguments, "training probes", unit="epochs") as tell:
        from otlabel.pictures import require_matplotlib
        from otlabel.training.judged import Protocol, draw, judge, told
        from otlabel.training.saved import SavedRun

        if arguments.plot is not None:
            require_matplotlib()
        saved = SavedRun(arguments.run)
        protocol = Protocol(
            layers=arguments.layers.split(",") if arguments.layers else None,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            n_crops=arguments.crops,
            flip=saved.config.augment.flip,
            seed=arguments.seed,
            workers=saved.config.data.workers,
        )
        images = saved.images() if arguments.data is None else saved.other_images(arguments.data)
        model = saved.model(best=arguments.best, allow_code=arguments.allow_code)
        judged = judge(model, images, protocol, progress=lambda epoch, n: tell(epoch, f"of {n}"))
    if arguments.json:
        print_json(run=str(arguments.run), data=images.name, **judged.to_dict())
    else:
        print(f"{images.name}: {judged.n_train:,} samples to train probes on, {judged.n_val:,} to judge by")
        if judged.is_apart:
            print("There are no test images with classes: a fifth of the others was set apart.")
        print(told(judged))
    if arguments.plot is not None:
        figure = draw(judged, f"{arguments.run}: linear probes on {images.name}")
        with replacing(arguments.plot) as file:
            figure.savefig(file, format="png", dpi=130)
        if not arguments.json:
            print(f"Picture written to {arguments.plot}")
    return 0
