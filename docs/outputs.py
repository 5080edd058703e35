"""What the examples print, and a picture of it, for the gallery: `python docs/outputs.py [NAME ...]`, five minutes.

`make docs FIGURES=1` does it, too. An example whose data are not there keeps what it has. Times and memory are those of
some machine: they are no measurements.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
OUTPUTS, PICTURES = HERE / "outputs", HERE / "images" / "examples"
INK, BARS = "#22303c", "#1f8a84"
SIZE, DPI = (4.8, 3.0), 110  # inches, and pixels an inch: those of a card of the gallery

# Easy ones first. Of each: what the bars are, and where a line has the words beside a bar and its number.
HOURS = {"voc_classification"}  # takes data and weights of one's own, so that there is nothing to show
SHOWN = {
    "arrays": ("accuracy", r"^((?:best|nearest|equal|the|between) .*?) {2,}\d.* ([\d.]+)$"),
    "balanced_clustering": ("accuracy", r"^(k-means|equal sizes|120 to 180) .* ([\d.]+) +[\d.]+$"),
    "few_labels": ("accuracy with one label a class", r"^((?:few|pseudo|the same).*?) {2,}([\d.]+)"),
    "text": ("accuracy", r"^((?:best|equal|KL|half|true).*?) {2,}\d.* ([\d.]+) +[\d.]+$"),
    "zero_shot": ("accuracy", r"^((?:best|equal|the|half|100|\.\.\.).*?) {2,}\d.* ([\d.]+) +[\d.]+$"),
    "expert_routing": ("largest load of an expert", r"^((?:top|one|five|Sinkhorn|exact).*?) {2,}([\d.]+) x"),
    "reviewers": ("score of the worst served paper", r"^((?:one|all) [a-z ]+?) {2,}[\d.]+ +([\d.]+)"),
    "sparse_neighbours": ("longest list", r"^(.*?): lists of 1 to (\d+)"),
    "curation": ("distance from equal shares of the classes", r"^(\w.*?) {2,}.*% +([\d.]+)$"),
    "hdf5": ("bytes read in all", r"([\d,]+) (?:bytes )?(streamed|with room)"),
    "own_loop": ("NMI with the true digits", r"^(epoch +\d+): .*NMI ([\d.]+)"),
    "selflabel_images": ("of the labels, against the true digits", r"(NMI|accuracy) ([\d.]+)"),
    "progressive_mass": ("NMI with the truth", r"^(\w.*?) +NMI ([\d.]+)"),
    "swav_batches": ("NMI with the truth", r"^((?:none|balanced|softmax).*?) {2,}.* ([\d.]+) +[\d.]+$"),
    "semantic_ids": ("percent of the texts that share a code", r"^(k-means|balanced.*?) {2,}.*? ([\d.]+)% +\d+ "),
    "index_lists": ("the longest list", r"^(faiss|balanced|two lists) +1 +(\d+)"),
    "selflabel_ddp": ("NMI with the true digits", r"^(epoch +\d+): .*NMI ([\d.]+)"),
}


def main(names: list[str]) -> None:
    """Run the examples that are named, or all, each in a process and an empty folder of its own."""
    for name in names or SHOWN:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, EXAMPLES / f"{name}.py"], cwd=folder, capture_output=True, text=True, check=False
            )
        if done.returncode:
            print(f"{name} fails: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        (OUTPUTS / f"{name}.txt").write_text(done.stdout, encoding="utf-8")
        draw(name, done.stdout)


def draw(name: str, printed: str) -> None:
    """Bars of what was printed, the first above the others, on a white ground as all pictures here."""
    title, where = SHOWN[name]
    found = [sorted(pair, key=lambda text: text[:1].isdigit()) for pair in re.findall(where, printed, re.MULTILINE)]
    words, numbers = [pair[0] for pair in found], [float(pair[1].replace(",", "")) for pair in found]
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(words, numbers, color=BARS, height=0.65)
    beside = [f"{number:,.0f}" if number > 999 else f"{number:.4g}" for number in numbers]
    axes.bar_label(bars, beside, padding=3, color=INK, fontsize=9)
    axes.set_xlim(0, 1.25 * max(numbers))
    axes.set_ylim(max(len(found), 4) - 0.5, -0.5)  # few bars are no thicker than many
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.tick_params(left=False, bottom=False, labelbottom=False, labelcolor=INK, labelsize=9.5)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.savefig(PICTURES / f"{name}.png", dpi=DPI, metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1:])
