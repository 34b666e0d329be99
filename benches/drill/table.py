#!/usr/bin/env python3
"""Makes the table of docs/drill.md from the last line of `varcas-guard drill --repeat N --json`.

    varcas-guard drill --repeat 25 --json | tail -1 | benches/drill/table.py > table.md
"""

import json
import sys


def human(seconds):
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s"


def cells(pair):
    return ("-", "-") if pair is None else (human(pair["median_s"]), human(pair["worst_s"]))


def main():
    drill = json.loads(sys.stdin.read().strip().splitlines()[-1])
    print("| scenario | what happens | runs | wrong | left | detected: median | worst | of it patience | clean: median | worst |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in drill["scenarios"]:
        detect, clean = cells(row["detect"]), cells(row["clean"])
        patience = "-" if row["patience_s"] is None else human(row["patience_s"])
        print(
            f"| `{row['scenario']}` | {row['about']} | {row['runs']} | {row['wrong']} | {row['leaks']} | {detect[0]} "
            f"| {detect[1]} | {patience} | {clean[0]} | {clean[1]} |"
        )
    total = drill["summary"]
    print(
        f"\n{total['runs']} runs in {total['took_s']:.0f} s: {total['wrong']} wrong, {total['leaks']} left behind, "
        f"{total['false_kills']} false kills in {total['healthy']} healthy runs."
    )


main()
