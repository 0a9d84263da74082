"""The table: a row for each target, measured on both sides, with the ratio, the target and whether it was met."""

COLUMNS = ("what", "resultsfs", "beside it", "ratio", "target", "")


class Target:
    """`value` compared with a bound; `text` is what the reader sees of the bound."""

    def __init__(self, sign, bound, text=None):
        self.sign, self.bound = sign, bound
        self.text = text or f"{sign} {bound:g}"

    def met(self, value):
        return {"<": value < self.bound, "<=": value <= self.bound, ">=": value >= self.bound, "=": value == self.bound}[self.sign]


class Table:
    def __init__(self):
        self.rows = []

    def ratio(self, what, ours, theirs, unit, target=None, beside="", places=2):
        """Ours against theirs; the target is the ratio's."""
        value = ours / theirs if theirs else float("nan")
        beside = f"{number(theirs, unit, places)} {beside}".strip()
        self.add(what, number(ours, unit, places), beside, f"{value:.3f}", target, value)

    def value(self, what, ours, unit, target=None, beside="", places=2):
        """Ours alone; the target is its bound."""
        self.add(what, number(ours, unit, places), beside, "", target, ours)

    def add(self, what, ours, beside, ratio, target, value):
        verdict = "" if target is None else "met" if target.met(value) else "missed"
        self.rows.append((what, ours, beside, ratio, target.text if target else "", verdict))

    def missing(self, what, why, target=None):
        self.rows.append((what, "", why, "", target.text if target else "", "not measured" if target else ""))

    def note(self, text):
        self.rows.append((text,))

    def show(self):
        whole = [row for row in self.rows if len(row) > 1]
        widths = [max(len(row[i]) for row in [COLUMNS, *whole]) for i in range(len(COLUMNS))]
        for row in [COLUMNS, tuple("-" * width for width in widths), *self.rows]:
            if len(row) == 1:
                print(f"  {row[0]}")
            else:
                print(" | ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip(" |"))
        verdicts = [row[5] for row in whole]
        print(f"# {verdicts.count('met')} met, {verdicts.count('missed')} missed, {verdicts.count('not measured')} not measured")


def number(value, unit, places=2):
    if value is None:
        return "not counted"
    return f"{value:,.{places}f} {unit}".strip()
