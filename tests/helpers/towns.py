"""A made-up corpus in which articles mention each other: thirty towns on five rivers."""

import json
from pathlib import Path

from clara.data.records import Document

RIVERS = ("Tamo", "Ulver", "Vessa", "Wendel", "Xanth")


def documents() -> list[Document]:
    """Thirty-five articles; every town is on a river and beside the next town."""
    towns = [
        f"{first}{last}"
        for first in ("Arl", "Bras", "Corv", "Delm", "Estr", "Fenw")
        for last in ("aton", "eford", "inham", "oville", "uby")
    ]
    found = []
    for number, town in enumerate(towns):
        river, following = RIVERS[number % 5], towns[(number + 1) % 30]
        text = (
            f"{town} is a small trading town on the long river {river}. "
            f"Its market was opened in {1700 + number} by the weavers' guild. "
            f"The road that leaves by the north gate goes to {following} and is paved. "
            "Old Stone Bridge is what its people are proud of."
        )
        found.append(Document(f"town-{number:02d}", town, text))
    for number, river in enumerate(RIVERS):
        text = (
            f"The river {river} rises in the hills and is {100 + number} miles long. "
            f"Many of the boats on it come from {towns[number]} each year."
        )
        found.append(Document(f"river-{number}", river, text))
    return found


def write(path: Path) -> Path:
    """The corpus as JSONL."""
    rows = ({"id": d.id, "title": d.title, "text": d.text, "description": f"About {d.title}"} for d in documents())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
