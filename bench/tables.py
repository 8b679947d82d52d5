"""Tables in Markdown, as cards and docs show them."""

import numpy as np


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"\n**{title}**\n")
    print("| " + " | ".join(header) + " |")
    print("|---|" + "--:|" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def number(value: float, form: str = ".3f") -> str:
    return "–" if np.isnan(value) else format(value, form)


def percent(part: float, whole: float) -> str:
    return number(100 * part / whole if whole else np.nan, ".1f")


def quantile(values: np.ndarray, q: float) -> float:
    values = values[~np.isnan(values)]
    return float(np.quantile(values, q)) if len(values) else np.nan
