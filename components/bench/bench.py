"""How fast a training steps: `make bench-train`.

Three ways on one machine, in one run, over the same models and the same clips: this package's trainer; a plain
restatement of the official train.py (guoyww/AnimateDiff), which encodes pixels and text in every step, keeps frozen
weights in fp32 under bf16 autocast and looks at each loss; and the bare UNet, forward and backward, which is the limit.
Each way has a process of its own, and they take turns. Everything is in memory when the clock starts.

B clips, F frames, C channels, H W pixels, h w latents, L D text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from components.bench.models import TRICKS, Case
from components.bench.variants import VARIANTS
from infra import runtime

SECONDS = 8.0
ON_CPU = (
    Case("pocket", "motion-module", 4, 16, 64),
    Case("pocket", "motion-module", 4, 16, 64, compile=True),
    Case("pocket", "motion-lora", 4, 16, 64),
    Case("pocket", "domain-adapter", 16, 1, 64),
)
ON_GPU = (
    Case("sd15", "motion-module", 8, 16, 256),
    Case("sd15", "motion-lora", 8, 16, 256),
    Case("sd15", "domain-adapter", 64, 1, 256),
    Case("sd15", "motion-module", 8, 16, 256, compile=True),
    Case("sd15", "motion-module", 32, 16, 256, "full"),
    Case("sd15", "motion-module", 1, 16, 256),
)


def main() -> None:
    """Measures and prints a table; `--json FILE` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="each way has so many turns, and the best is told")
    parser.add_argument("--tricks", action="store_true", help="instead, the first case with one trick undone at a time")
    parser.add_argument("--json", type=Path)
    example = json.dumps(vars(Case("sd15", "motion-module", 1, 16, 64)))
    parser.add_argument("--case", help=f"a case as JSON instead of the table's, such as '{example}'")
    parser.add_argument("--way", choices=sorted(VARIANTS), help="only this, in this process")
    options = parser.parse_args()
    runtime.quiet_environment()
    device = runtime.pick_device()
    cases: tuple[Case, ...] = ON_GPU if device.type == "cuda" else ON_CPU
    if options.case:
        cases = (Case(**json.loads(options.case)),)
    if options.way:
        print(json.dumps(VARIANTS[options.way](cases[0], device, SECONDS)))
        return
    if options.tricks:
        _tricks(cases[0], options.repeats)
        return
    results = []
    for case in cases:
        results.append({**vars(case), "device": _name(device), **_measure(case, options.repeats)})
        print(_lines(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _measure(case: Case, repeats: int) -> dict[str, Any]:
    """The best of each way's turns."""
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in VARIANTS}
    for _ in range(repeats):
        for way, told in turns.items():
            told.append(_in_a_process(way, case))
    best = {way: max(told, key=lambda each: each["rate"]) for way, told in turns.items()}
    return best | {"all": {way: [each["rate"] for each in told] for way, told in turns.items()}}


def _tricks(case: Case, repeats: int) -> None:
    """Prints ours, and ours without each trick, in turns; the best of each."""
    rates: dict[str, list[float]] = {name: [] for name in ("", *TRICKS)}
    for _ in range(repeats):
        for name, found in rates.items():
            found.append(_in_a_process("ours", replace(case, undo=name))["rate"])
    whole = max(rates.pop(""))
    print(f"{case.model}, {case.stage}: {whole:.2f} samples/s")
    for name, found in rates.items():
        print(f"  without {name:<20} {max(found):9.2f}; it gives {whole / max(found):.2f} times")


def _in_a_process(way: str, case: Case) -> dict[str, Any]:
    command = [sys.executable, "-m", "components.bench.bench", "--way", way, "--case", json.dumps(vars(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} of {case} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _lines(result: dict[str, Any]) -> str:
    ours, limit, plain, exact = (result[way] for way in VARIANTS)
    mfu = "" if ours["mfu"] is None else f", {ours['mfu']:.0%} of the measured matmul rate"
    rows = [
        f"{result['model']}, {result['stage']}, {result['clips']} clips of {result['frames']} frames at "
        f"{result['size']} px on {result['device']}, {result['checkpointing']} recomputed"
        f"{', compiled' if result['compile'] else ''}:",
        f"  ours   {ours['rate']:9.2f} samples/s, peak {ours['peak_gib']:.2f} GiB of {ours['predicted_gib']:.2f} "
        f"predicted{mfu}",
        *(
            f"  {name}  {found['rate']:9.2f} samples/s{but}; ours is {ours['rate'] / found['rate']:.2f} of it"
            for name, found, but in (
                ("limit", limit, ""),
                ("plain", plain, ""),
                ("plain", exact, " without its autocast"),
            )
        ),
    ]
    return "\n".join(rows)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
