"""One command on a machine with a card: is everything right there, and how fast is it. JSON and Markdown come out.

    python benchmarks/gpu_check.py --out results        # on a card, under eight minutes
    python benchmarks/gpu_check.py --quick              # tiny sizes on the CPU: tests this script itself

Needs neither POT nor faiss. Parts run one after the other in one process beside this one. Where a part breaks the
card's context, ends its process or hangs, that process is given up and the next parts get a new one; every row that is
known is on disk by then. A part or row that fails, or for which no time is left, says so; the others go on. At the end
stands what was to be reached, and whether it was. Peers run where they are installed:
pip install ott-jax 'jax[cuda12]' flash-sinkhorn.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from card.checking import CARD, QUICK
from card.others import APART, run_peer
from card.report import is_wrong, targets, to_markdown
from card.running import PARTS, file_of, run_parts, supervise
from machine import describe_machine, read_json, write_json

PACKAGES = ["torch", "triton", "numba", "numpy", "scipy", "scikit-learn", "jax", "ott-jax", "flash-sinkhorn"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--rows", type=int, help="rows of the largest problems (1281167)")
    parser.add_argument("--budget", type=float, default=440.0, help="seconds (%(default)s)")
    parser.add_argument("--parts", nargs="*", choices=PARTS, metavar="PART", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for the results (%(default)s)")
    parser.add_argument("--earlier", type=Path, help="a report, of which parts that do not run now are kept")
    parser.add_argument("--peer", choices=APART, help="only the rows of this one, to the file that --out names")
    parser.add_argument("--here", action="store_true", help="in this process, without a report")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    plan = QUICK if arguments.quick else CARD
    if arguments.quick:  # processors may be shared, and nothing is measured
        PARTS.update({name: (part, least, 5 * most) for name, (part, least, most) in PARTS.items()})
    if arguments.rows:
        heads, _, dim, n_classes = plan.factored
        largest = arguments.rows, plan.sweep[1]
        plan = replace(
            plan, sweep=largest, solves=(plan.solves[0], largest), factored=(heads, arguments.rows, dim, n_classes)
        )
    names = list(arguments.parts or PARTS)
    if arguments.peer:
        run_peer(arguments.peer, plan, arguments.out)
        return 0
    if arguments.here:
        return run_parts(names, plan, arguments.budget, arguments.out / "parts")
    if plan.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no card here; --quick runs tiny sizes on the CPU", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name() if plan.device == "cuda" else "none (--quick)"
    machine, earlier = describe_machine(PACKAGES), read_json(arguments.earlier) if arguments.earlier else {}
    parts = {
        name: {"of": earlier["machine"]["date"], **part}
        for name, part in earlier.get("parts", {}).items()
        if name not in names
    }

    def report() -> None:
        """What is known so far, should this process be ended."""
        for name in names:
            if part := read_json(file_of(arguments.out / "parts", name)):
                parts[name] = part
        found = {
            **earlier,
            "machine": machine,
            "card": card,
            "plan": asdict(plan),
            "parts": parts,
            "targets": targets(parts, plan),
        }  # of the earlier report what was written into it by hand stays, too: "tests" and "before"
        write_json(arguments.out / "gpu_check.json", found)
        (arguments.out / "gpu_check.md").write_text(to_markdown(found), encoding="utf-8")

    supervise(names, arguments, report)
    report()
    print((arguments.out / "gpu_check.md").read_text(encoding="utf-8"))
    return int(any(is_wrong(part) for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
