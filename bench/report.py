"""What is expected of each class of work, and the tables."""
import math
import pathlib
import statistics

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- make bench writes below -->", "<!-- make bench writes above -->"

# class -> (what it is, slow-down against native at most, times faster than TCG at least)
CLASSES = {
    "integer": ("integer, branches, calls, pointer chasing", 1.8, 3),
    "vector": ("SSE2, AVX2, AVX-512, x87", 1.3, 20),
    "memory": ("copies, streams, rep movs and stos", 1.5, 15),
    "syscall": ("system call, clock read", 3, 2),
    "pread": ("4 KiB read from the page cache", 5, 10),
    "open": ("open and close", None, None),
    "fault": ("page fault, mmap+touch+munmap, mprotect", 6, 3),
    "signal": ("signal, SIGSEGV round trip", 8, 3),
    "fork": ("fork and exit", 6, 2),
    "thread": ("thread create and join", 4, 2),
    "exec": ("fork and exec", 2.5, 2),
    "pipe": ("pipe round trip on one CPU", 8, 4),
    "patched": ("code patched and called", 10, 3),
    "fresh": ("freshly written code run once", 150, 10),
    "whole": ("whole programs in the Debian image", 3, 5),
    "boot": ("boot (seconds)", None, 2),
    "smp": ("work of two CPUs at once, in works of one", None, None),
    "footprint": ("host memory beyond 256 MiB of guest RAM (MiB)", None, None),
}
SECONDS, TIMES, MIB = "boot", "smp", "footprint"  # classes that are not nanoseconds
SMP_AT_LEAST, FOOTPRINT_AT_MOST = 1.8, 64


def median(values):
    numbers = [v for v in values or () if isinstance(v, float)]
    return statistics.median(numbers) if numbers else None


def why_not(values):
    """For a cell without a number."""
    words = [v.split(":")[0] for v in values or () if isinstance(v, str)]
    return words[0] if words else "-"


def amount(value, class_):
    if class_ == SECONDS:
        return f"{value:.2f} s"
    if class_ == TIMES:
        return f"{value:.2f}"
    if class_ == MIB:
        return f"{value:.0f} MiB"
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} ns"


def ratio(a, b):
    return a / b if a and b else None


def times(value):
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def spread(above, below):
    """Of the ratio, round by round: (largest - smallest) / median."""
    pairs = [a / b for a, b in zip(above or (), below or ()) if isinstance(a, float) and isinstance(b, float) and b]
    if len(pairs) < 2:
        return "-"
    return f"{100 * (max(pairs) - min(pairs)) / statistics.median(pairs):.0f} %"


class Row:
    """One workload: its values by peer, round by round."""

    def __init__(self, name, class_, values):
        self.name, self.class_, self.values = name, class_, values
        self.native, self.lodge = median(values.get("native")), median(values.get("lodge"))
        better = max if class_ == TIMES else min
        found = [(median(v), peer) for peer, v in values.items() if peer.startswith("tcg") and median(v)]
        self.tcg, self.tcg_peer = better(found) if found else (None, None)
        self.slowdown = ratio(self.lodge, self.native)
        self.speedup = ratio(self.tcg, self.lodge) if class_ != TIMES else ratio(self.lodge, self.tcg)

    def cell(self, peer):
        value = self.tcg if peer == "tcg" else getattr(self, peer)
        if value:
            return amount(value, self.class_)
        keys = [k for k in self.values if k.startswith("tcg")] if peer == "tcg" else [peer]
        return why_not([v for k in keys for v in self.values.get(k, ())])

    def cells(self):
        above, below = ("lodge", "native") if self.native else (self.tcg_peer, "lodge")
        return [self.name, self.cell("native"), self.cell("lodge"), self.cell("tcg"), times(self.slowdown), times(self.speedup),
                spread(self.values.get(above), self.values.get(below))]


def geometric_mean(values):
    values = [v for v in values if v]
    return math.exp(statistics.fmean(map(math.log, values))) if values else None


def markdown(head, rows):
    """A table that is readable as text too."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    line = lambda row: "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"  # noqa: E731
    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def goal(value, target, at_most):
    if target is None:
        return "-"
    sign = "<=" if at_most else ">="
    if value is None:
        return f"{sign} {target:g}"
    met = value <= target if at_most else value >= target
    return f"{sign} {target:g}{'' if met else ' (missed)'}"


def class_rows(rows):
    out = []
    for name, (title, slowdown, speedup) in CLASSES.items():
        here = [row for row in rows if row.class_ == name]
        if not here:
            continue
        ours, theirs = (geometric_mean([getattr(row, what) for row in here]) for what in ("slowdown", "speedup"))
        goals = goal(ours, slowdown, True), goal(theirs, speedup, False)
        if name == TIMES:
            ours, theirs, goals = here[0].lodge, here[0].tcg, (goal(here[0].lodge, SMP_AT_LEAST, False), "(TCG's own)")
        elif name == MIB:
            goals = goal(here[0].lodge, FOOTPRINT_AT_MOST, True) + " MiB", goal(theirs, 1, False)
            ours = here[0].lodge
        out.append([title, times(ours), goals[0], times(theirs), goals[1]])
    return out


def text(results, facts):
    """results: {workload: (class, {peer: [values]})}. facts: lines about the machine and the run."""
    rows = [Row(name, class_, values) for name, (class_, values) in results.items()]
    rows.sort(key=lambda row: list(CLASSES).index(row.class_))
    classes = markdown(["class (geometric mean)", "Lodge / native", "goal", "TCG / Lodge", "goal"], class_rows(rows))
    single = markdown(["workload", "native", "Lodge", "TCG (best)", "Lodge / native", "TCG / Lodge", "spread"],
                      [row.cells() for row in rows])
    return "\n".join([*facts, "", classes, "", single])


def write_docs(report):
    page = DOCS.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    DOCS.write_text(f"{head}{BEGIN}\n{report}\n{END}{tail}")
