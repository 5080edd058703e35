"""What is said about the findings: on the terminal, and in the page beside the picture."""

from __future__ import annotations

import textwrap

import numpy as np

from otlabel.commands.demo.runs import CLOTHES_EPOCHS, METHODS, N_CLOTHES, SEEDS, Findings, K, Labelled

TITLE = "# otlabel demo: a network labels handwritten digits for itself"


def table(findings: Findings) -> str:
    """One line a method, in aligned columns, which Markdown shows as a table too."""
    head = f"| {'mean (worst-best)':<18} | {'NMI':<17} | {'accuracy':<17} | {'sizes':<7} |"
    rule = f"|:{'-' * 19}|{'-' * 19}|{'-' * 19}|{'-' * 9}|"
    return "\n".join([head, rule, *(_line(name, runs) for name, runs in findings.runs.items())])


def _line(name: str, runs: list[Labelled]) -> str:
    sizes = np.concatenate([run.sizes for run in runs])
    nmi, accuracy = ([getattr(run, key) for run in runs] for key in ("nmi", "accuracy"))
    return f"| {name:<18} | {_spread(nmi):<17} | {_spread(accuracy):<17} | {f'{sizes.min()}-{sizes.max()}':<7} |"


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.2f}-{max(values):.2f})"


def what_is_done() -> str:
    """Before it is done."""
    return f"""\
1297 scanned digits (scikit-learn), {K} classes, no labels. A small convolutional
network starts from random weights and random labels, {len(SEEDS)} times. In turn it trains
on its labels, and all images are labelled anew: the best total log-probability
with exactly equal class sizes. k-means on the pixels is there to compare with.
NMI and accuracy judge by the true digits, which nothing else sees."""


def conclusion(findings: Findings) -> str:
    """What the table shows, whichever way it went; what can be told without the truth; how other data did."""
    parts = (_against_k_means(findings), _without_truth(findings), _on_clothes(findings))
    return "\n\n".join(textwrap.fill(part, 80) for part in parts)


def _against_k_means(findings: Findings) -> str:
    k_means, own = (findings.runs[method] for method in METHODS)
    difference = float(np.mean([run.accuracy for run in own]) - np.mean([run.accuracy for run in k_means]))
    seconds = float(np.median([run.seconds for run in own]))
    better = sum(run.accuracy > max(other.accuracy for other in k_means) for run in own)
    way = "above" if difference > 0 else "below"
    return (
        f"Self-labelling ends {abs(difference):.3f} {way} k-means in mean accuracy; {better} of {len(own)} seeds beat "
        "the best k-means. It knows more than k-means does: that turned, zoomed and shifted images show the same "
        "digit, since it trains on such; and that digits are equally frequent, which is true here to within 3 %. Its "
        "settings were chosen on other seeds by the truth, which your own data may not have. A run took "
        f"{seconds:.0f} s."
    )


def _without_truth(findings: Findings) -> str:
    """What `quality` says of the runs, and what the labeler has warned of."""
    ranked = sorted(findings.runs[METHODS[1]], key=lambda run: run.quality or 0.0)
    worst, best = ranked[0], ranked[-1]
    told = (
        f"Without the truth there is `quality`, from 0 to 1: {worst.quality:.2f} to {best.quality:.2f} here. The run "
        f"that it prefers has accuracy {best.accuracy:.2f}, the one that it likes least {worst.accuracy:.2f}."
    )
    warned = [run for run in ranked if run.alarms]
    if warned:
        alarm = f'with seed {warned[0].seed}: "{warned[0].alarms[0]}"'
        told += f" otlabel warned in {len(warned)} of {len(ranked)} runs, {alarm}."
    return told


def _on_clothes(findings: Findings) -> str:
    if findings.clothes is None:
        return (
            "Other data need no recipe: `otlabel train my-images/ -k 10 -o run`. Were Fashion-MNIST installed "
            "(Debian's package dataset-fashion-mnist), you would see here how that does on it."
        )
    k_means, own = findings.clothes
    return (
        f"Other data need no recipe. On {N_CLOTHES} images of clothes (Fashion-MNIST), the settings that "
        f"`otlabel train DATA -k 10` takes for any images, cut to {CLOTHES_EPOCHS} epochs, reach accuracy "
        f"{own.accuracy:.2f} and NMI {own.nmi:.2f}; k-means {k_means.accuracy:.2f} and {k_means.nmi:.2f}; "
        f"quality is {own.quality:.2f}."
    )


def page(findings: Findings) -> str:
    """The one-page summary, in Markdown."""
    lines = "\n".join(
        f"| {run.seed} | {run.nmi:.3f} | {run.accuracy:.3f} | {run.sizes.min()}-{run.sizes.max()} | {run.gap:.0e} | "
        f"{run.seconds:.1f} |"
        for run in findings.runs[METHODS[1]]
    )
    return f"""{TITLE}

{what_is_done()}

{table(findings)}

{conclusion(findings)}

![How labels improve, and images of every class](demo.png)

## Every seed

| seed | NMI | accuracy | class sizes | gap | seconds |
|---:|---:|---:|---:|---:|---:|
{lines}

The gap bounds how much better any labels of equal sizes could be under the network's last log-probabilities: zero up to
rounding is the proof that there are none.

## Files

- `demo.png`: above, the labels' accuracy after each epoch; below, every class of the seed whose accuracy is the median.
- `report.html`: the same labels looked at from all sides; `otlabel report` makes one of any labels.
- `labels.npy`: the labels of that seed, int64, in the order of `otlabel.training.data.load_images("digits").train`.

## Your own data

The same with figures, checkpoints and resume, for images in a folder or an array, from one TOML file:

    otlabel train digits -o runs/digits
    otlabel train digits -o runs/mine --set data.name=my-images/ --set 'model.heads=[20]'

or in your own training loop, with any model:

    from otlabel import MultiHead, OptimalTransport, QuadraticSchedule, SelfLabeler
"""
