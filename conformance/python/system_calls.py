"""What a hub asked of its kernel, in order, as strace saw it."""

import os
import re
import shlex
import threading
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass

import hub as hubs

WRITES = {"write", "writev", "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg"}
SYNCS = {"fsync", "fdatasync"}
#: A connection's descriptor belongs to something else before and after.
OPENS, CLOSES = {"accept4"}, {"close"}

#: Longer than any single part of a write here; a message that is cut off is not found, and that fails.
STRING_BYTES_MAX = 4 << 20


@dataclass(frozen=True)
class Call:
    """A system call that succeeded; `start` and `end` are places in the order of all starts and ends."""

    start: int
    end: float
    name: str
    descriptor: int
    data: bytes


class Traced:
    """Has a hub started under strace; its calls are complete when the hub has ended.

    strace lets no call begin or return without writing that down first. So when one call returns and
    another begins because of that, they stand in this order.
    """

    def __init__(self, hub, folder):
        self.hub, self.pipe = hub, folder / "strace.pipe"
        os.mkfifo(self.pipe)
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.script = folder / "fieldpost-under-strace"
        # As a grandchild (-D), so that the hub has the process id and gets the signals.
        strace = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-xx", "-e", "signal=none"]
        strace += ["-s", str(STRING_BYTES_MAX), "-o", str(self.pipe)]
        strace += ["-e", "trace=" + ",".join(sorted(WRITES | SYNCS | OPENS | CLOSES)), str(hubs.BINARY)]
        self.script.write_text(f'#!/bin/sh\nexec {shlex.join(strace)} "$@"\n')
        self.script.chmod(0o755)

    def _read(self):
        with open(self.pipe, encoding="ascii") as pipe:
            self.lines.extend(pipe)

    def start(self, monkeypatch):
        """Starts the hub; commands of its binary run without strace."""
        self.reader.start()
        with monkeypatch.context() as patch:
            patch.setattr(hubs, "BINARY", self.script)
            self.hub.start()

    def stop(self):
        """Stops the hub and returns its calls."""
        self.hub.stop()
        self.reader.join(60)
        assert not self.reader.is_alive(), "strace does not end"
        return calls_in(self.lines)


_LINE = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)")
_RESULT = re.compile(r"\) += (-?\d+)[^)]*$")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def calls_in(lines):
    """The calls of a trace (`strace -f -xx`), those that failed or did not return left out."""
    calls, begun = [], {}
    for place, line in enumerate(lines):
        match = _LINE.match(line)
        if not match:
            continue
        thread, name, text = match.groups()
        start = place
        if "resumed>" in line:
            start, before = begun.pop((thread, name))
            text = before + text
        if "<unfinished ...>" in text:
            begun[thread, name] = (start, text.replace("<unfinished ...>", ""))
            continue
        result = _RESULT.search(text)
        if result is None or int(result[1]) < 0:
            continue
        data = b"".join(bytes.fromhex(part.replace("\\x", "")) for part in _STRING.findall(text))
        descriptor = int(result[1] if name in OPENS else text.split(",")[0].split(")")[0])
        if name in WRITES:
            data = data[: int(result[1])]
        calls.append(Call(start, place, name, descriptor, data))
    return sorted(calls, key=lambda call: call.start)


def writes_of(calls, marks):
    """For each mark the first write whose data completes it."""
    found, tails = {}, defaultdict(bytes)
    for call in calls:
        if call.name in WRITES:
            # A file that is written through a buffer may be written in the middle of a mark.
            data = tails[call.descriptor] + call.data
            tails[call.descriptor] = data[-64:]
            for mark in marks.findall(data):
                found.setdefault(mark, call)
    return found


class Sent:
    """All that was sent on a connection."""

    def __init__(self, calls):
        self.calls, self.ends, self.data = calls, [], b""
        for call in calls:
            self.data += call.data
            self.ends.append(len(self.data))

    def call_at(self, place):
        """The call that sent the byte at a place."""
        return self.calls[bisect_left(self.ends, place + 1)]


def sent_after(calls, greeting):
    """What was sent on the one connection on which the hub greeted its client so."""
    connections, open_now = [], {}
    for call in calls:
        if call.name in OPENS:
            open_now[call.descriptor] = []
            connections.append(open_now[call.descriptor])
        elif call.name in CLOSES:
            open_now.pop(call.descriptor, None)
        elif call.name in WRITES and call.descriptor in open_now:
            open_now[call.descriptor].append(call)
    (sent,) = (sent for sent in map(Sent, connections) if sent.data.startswith(greeting))
    return sent


def synced(calls, written):
    """For each mark that was written: the first sync of that file that began after the write's end."""
    syncs = defaultdict(list)
    for call in calls:
        if call.name in SYNCS:
            syncs[call.descriptor].append(call)
    result = {}
    for mark, write in written.items():
        of_file = syncs[write.descriptor]
        at = bisect_left([sync.start for sync in of_file], write.end)
        if at < len(of_file):
            result[mark] = of_file[at]
    return result


def unproven(calls, marks, replies):
    """The marks whose reply was sent before its message's write was followed by a whole sync."""
    syncs = synced(calls, writes_of(calls, marks))
    return {
        mark
        for mark, reply in replies.items()
        if mark not in syncs or reply.start < syncs[mark].end
    }
