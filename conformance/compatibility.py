"""Makes docs/compatibility.md of what the compatibility matrix found when every cell was run.

    compatibility.py           writes the page
    compatibility.py --check   exits with 1 when the page differs from what would be written

The outcomes are those of one whole run, of conformance/python/test_matrix.py with
FIELDPOST_MATRIX=full.
Rows of libraries that cannot run here stand in conformance/scripted.json, a list of

    {"side": "devices", "library": ..., "version": ..., "transport": ...,
     "tests": {FEATURE: "name_of_the_rust_test", ...}}

Each names, by feature, the Rust test that plays the bytes which the library is documented to send.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTCOMES = ROOT / "target/conformance/matrix.jsonl"
SCRIPTED = ROOT / "conformance/scripted.json"
PAGE = ROOT / "docs/compatibility.md"

INTRODUCTION = """\
# Compatibility

What works with which library, over which transport. Written by `conformance/compatibility.py`; \
do not edit.

Every cell was run: the unmodified library of that version, installed from its registry, against \
the hub's binary, over TLS on the ports that the libraries have compiled in. Nothing here is \
assumed.

| Cell | Meaning |
| --- | --- |
| yes | It was run and works. |
| – | The library does not offer it over this transport; that, too, was run or looked at, and a \
note says how it shows. |
| gap | It was run and does not work, for the reason that a note gives. |
| scripted | The library cannot be installed where the tests run. A test named in the notes plays \
the bytes that it is documented to send. |
| ? | Nothing was run. |
"""

FEATURES = """\
**send**: a message with properties is stored as it was sent. **batch**: so are several in one \
request. **receive**: a message to the device comes with its properties. **complete**, \
**abandon**, **reject**: what becomes of it; an abandoned one comes again. **key**: the device is \
given its connection string. **token**: the application makes the token. **X.509 thumbprint**, \
**X.509 authority**: a certificate that is registered, or one of an authority that is; in all \
four, wrong credentials are refused. **module**: a module sends with its own key. **module \
receiving**: a message to the module comes, and is completed. **renew**: the \
device goes on long after its first token has ended, with a token that the library made anew, \
where it makes them, and with one that the application gave it. **reconnect**: the hub is stopped \
and started, then killed and started, and messages go both ways again. **after**: the device has \
asked for that fault (operations.md says what it does), and messages go both ways again. \
**during**: the device has asked to be refused for some time, and sends meanwhile; a note says what \
its library makes of that, and messages go both ways afterwards.
"""

SIDES = {"devices": "Devices", "services": "Services"}
MARKS = {"yes": "yes", "not offered": "–", "gap": "gap", "scripted": "scripted"}
UNKNOWN = "?"


class Incomplete(Exception):
    """There is no whole run to make a page of."""


def outcomes():
    """What was run, as (side, row, feature, outcome, note)."""
    if not OUTCOMES.exists():
        raise Incomplete(f"{OUTCOMES} is missing: run the matrix with FIELDPOST_MATRIX=full")
    found = []
    for line in OUTCOMES.read_text().splitlines():
        cell = json.loads(line)
        row = (cell["library"], cell["version"], cell["transport"])
        if cell["outcome"] not in MARKS:
            raise Incomplete(f"{' '.join(row)}: {cell['feature']} {cell['outcome']}")
        found.append((cell["side"], row, cell["feature"], cell["outcome"], cell["note"]))
    check_whole(found)
    return found


def check_whole(found):
    """That every row of a side has every column of it, once."""
    for side in {cell[0] for cell in found}:
        features = {cell[2] for cell in found if cell[0] == side}
        for row in {cell[1] for cell in found if cell[0] == side}:
            ran = [cell[2] for cell in found if cell[:2] == (side, row)]
            if sorted(ran) != sorted(features):
                lacks = ", ".join(sorted(features - set(ran))) or "a cell ran twice"
                raise Incomplete(f"{' '.join(row)}: not a whole run: {lacks}")
    if not found:
        raise Incomplete(f"{OUTCOMES} is empty")


def scripted():
    """What tests in Rust play, in the form of `outcomes`; each test must be there."""
    sources = None
    found = []
    for entry in json.loads(SCRIPTED.read_text()):
        row = (entry["library"], entry["version"], entry["transport"])
        for feature, test in entry["tests"].items():
            if sources is None:
                sources = "\n".join(p.read_text() for p in (ROOT / "crates").rglob("*.rs"))
            name = test.rpartition("::")[2]
            if not re.search(rf"\bfn {re.escape(name)}\b", sources):
                raise Incomplete(f"{SCRIPTED.name}: there is no test {test}")
            found.append((entry["side"], row, feature, "scripted", f"`{test}`"))
    return found


def table(cells):
    """The table of one side, and its notes."""
    # In the order in which they were run.
    features = list(dict.fromkeys(cell[2] for cell in cells))
    rows = list(dict.fromkeys(cell[1] for cell in cells))
    marks = {(row, feature): MARKS[outcome] for _, row, feature, outcome, _ in cells}
    head = ["Library", "Version", "Transport", *features]
    lines = [line(head), line(["---"] * len(head))]
    for row in rows:
        lines.append(line([*row, *(marks.get((row, feature), UNKNOWN) for feature in features)]))
    return "\n".join(lines) + "\n\n" + notes(cells, features)


def line(texts):
    return f"| {' | '.join(texts)} |"


def notes(cells, features):
    """What was noted, the transports of a library together that have the same note."""
    told = {}
    for _, (library, _, transport), feature, outcome, note in cells:
        if note:
            key = (features.index(feature), feature, MARKS[outcome], library, note)
            told.setdefault(key, []).append(transport)
    return "".join(
        f"- **{feature}** ({mark}), {library}, {', '.join(transports)}: {note}\n"
        for (_, feature, mark, library, note), transports in sorted(
            told.items(), key=lambda item: item[0][0]
        )
    )


def page():
    cells = outcomes() + scripted()
    parts = [INTRODUCTION, FEATURES]
    for side in dict.fromkeys(cell[0] for cell in cells):
        parts.append(f"## {SIDES[side]}\n\n" + table([c for c in cells if c[0] == side]))
    return "\n".join(parts)


def main():
    arguments = argparse.ArgumentParser(description="Makes docs/compatibility.md.")
    arguments.add_argument("--check", action="store_true", help="write nothing; 1 if it differs")
    check = arguments.parse_args().check
    try:
        made = page()
    except Incomplete as error:
        print(error, file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(made)
        return 0
    if not PAGE.exists() or PAGE.read_text() != made:
        print(f"{PAGE} is not what the matrix found: run {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
