"""Random faults on a running slotd under load, for as long as you like.

    python benchmarks/soak.py                                    # 1,000 faults in 20 minutes
    python benchmarks/soak.py --minutes 2 --faults 100 --seed 7  # another, shorter
    python benchmarks/soak.py --engine llama-cpp --model FILE    # with the real engine in it

What is done is a function of the seed, and is printed as it happens. An oracle
judges every answer, transition and process; any violation ends in exit code 1.
See ``benchmarks/README.md`` and ``slotd.testing.chaos``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import trio
from rich.console import Console

import soak_report
from slotd.testing.chaos.oracle import Expect
from slotd.testing.chaos.plan import told
from slotd.testing.chaos.soak import Settings, plan_of, soak

FEATURES = ("replay", "liveness", "reload", "restore")


def main() -> int:
    options = _options()
    settings = Settings(
        seed=options.seed,
        minutes=options.minutes,
        faults=options.faults,
        clients=options.clients,
        rest_every=options.rest_every,
        engine=options.engine,
        model=options.model,
        expect=Expect(**{feature: feature not in options.without for feature in FEATURES}),
    )
    if options.plan:
        for step in plan_of(settings):
            print(f"{step.number:5} {step.at_s:8.1f} s  {told(step.fault)}")
        return 0

    def tell(line: str) -> None:
        if not options.quiet or not line.startswith("  "):
            print(line, flush=True)

    result = trio.run(soak, settings, tell)
    soak_report.show(Console(width=None if Console().is_terminal else 140), result)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_bytes(soak_report.as_json(result, sys.argv[1:]))
    return 1 if result.violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20, help="the faults are spread over them (20)")
    parser.add_argument("--faults", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="decides them all (0)")
    parser.add_argument("--clients", type=int, default=20, help="that ask at the same time (20)")
    parser.add_argument(
        "--rest-every", type=int, default=100, help="after so many faults all comes to rest (100)"
    )
    parser.add_argument("--engine", choices=("fake", "llama-cpp"), default="fake", help="of the slot chat")
    parser.add_argument("--model", type=Path, help="a GGUF file, for the real engine")
    parser.add_argument(
        "--without",
        nargs="*",
        choices=FEATURES,
        default=[],
        help="what the oracle does not insist on",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    parser.add_argument("--plan", action="store_true", help="show the faults and do nothing")
    parser.add_argument("--quiet", action="store_true", help="show violations and the tables only")
    options = parser.parse_args()
    if options.engine == "llama-cpp" and options.model is None:
        parser.error("--engine llama-cpp needs --model")
    if min(options.minutes, options.faults, options.clients, options.rest_every) <= 0:
        parser.error("--minutes, --faults, --clients and --rest-every must be positive")
    return options


if __name__ == "__main__":
    sys.exit(main())
