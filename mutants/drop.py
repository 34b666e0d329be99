"""Which mutants do not compile: reads SCRATCH/build.json and adds them to SCRATCH/dropped.tsv."""

import json
import os
import re
import sys

scratch = sys.argv[1]
table = {}
for line in open(f"{scratch}/mutants.tsv"):
    number, file, at, _, what = line.rstrip("\n").split("\t")
    table[int(number)] = f"{file}\t{at}\t{what}"
texts, dropped, elsewhere = {}, set(), []
for line in open(f"{scratch}/build.json"):
    row = json.loads(line)
    message = row.get("message")
    if row.get("reason") != "compiler-message" or message["level"] != "error":
        continue
    found = False
    for span in message["spans"]:
        path = os.path.join(scratch, span["file_name"])
        if not span["is_primary"] or not os.path.exists(path):
            continue
        text = texts.setdefault(path, open(path, "rb").read())
        # The switch that stands last before the mistake.
        before = re.findall(rb"mutants :: on \((\d+)u32\)", text[: span["byte_end"]])
        if before:
            dropped.add(table[int(before[-1])])
            found = True
    if not found and message["spans"]:
        elsewhere.append(message["rendered"])
with open(f"{scratch}/dropped.tsv", "a") as out:
    out.writelines(f"{line}\n" for line in sorted(dropped))
print(f"{len(dropped)} mutants do not compile")
if not dropped:
    sys.exit("the copy does not build:\n" + "\n".join(elsewhere)[:4000] + open(f"{scratch}/build.err").read()[-3000:])
