"""Pages as offices make them: receipts read field by field, tables, charts, and several typed pages."""

from __future__ import annotations

import json
import random

from PIL import Image, ImageDraw, ImageFont

from bench.suites import prose
from bench.suites.drawing import Color, font, paper
from bench.suites.items import Make, ask
from bench.tasks import Item

INK = (28, 28, 32)
SHOPS = (
    "Harbour Deli",
    "Corner Bakery",
    "Green Grocer",
    "Miller & Sons",
    "Station Kiosk",
    "The Tea Room",
    "Nordlicht Markt",
)
STREETS = (
    "12 Canal Street",
    "3 Mill Lane",
    "48 High Road",
    "7 Orchard Court",
    "221 River Walk",
    "90 Chapel Hill",
)
GOODS = (
    "Rye bread", "Green tea", "Butter", "Apples 1kg", "Olive oil", "Coffee beans", "Dark chocolate",
    "Milk", "Eggs x10", "Tomatoes", "Cheddar", "Rice 500g", "Sparkling water", "Honey", "Soap",
)  # fmt: skip
CITIES = (
    "Aldport",
    "Brinwick",
    "Castra",
    "Dunmere",
    "Elvery",
    "Farrow",
    "Glenholt",
    "Hexby",
    "Ironbay",
    "Juniper",
)
MEASURES = ("Visitors", "Revenue", "Staff", "Parcels", "Complaints", "Trains", "Permits", "Refunds")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TITLES = (
    "Umbrellas sold",
    "Loaves baked",
    "Books lent",
    "Ferry passengers",
    "Bicycles repaired",
    "Hours of sunshine",
)
TINTS: tuple[Color, ...] = ((54, 108, 176), (200, 90, 50), (70, 140, 90), (120, 85, 160))
PAGE = (640, 832)


def receipt(rng: random.Random) -> Item:
    """Shop, date, what was bought and the total, as a JSON object."""
    face, bold, large = font("mono", 19), font("mono-bold", 19), font("mono-bold", 26)
    goods = rng.sample(GOODS, rng.randint(3, 6))
    bought = [(name, rng.randint(1, 4), rng.randint(60, 1490) / 100) for name in goods]
    total = round(sum(quantity * price for _, quantity, price in bought), 2)
    shop = rng.choice(SHOPS)
    date = f"20{rng.randint(18, 25)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    columns = 36
    lines = [
        rng.choice(STREETS).center(columns),
        "",
        f"{date}  {rng.randint(8, 20):02}:{rng.randint(0, 59):02}",
        "-" * columns,
    ]
    for name, quantity, price in bought:
        amount = f"{quantity * price:.2f}"
        lines += [f"{name}", f"  {quantity} x {price:.2f}".ljust(columns - len(amount)) + amount]
    vat = f"{total - total / 1.2:.2f}"
    lines += ["-" * columns, "TOTAL EUR".ljust(columns - len(f"{total:.2f}")) + f"{total:.2f}"]
    lines += [
        "incl. VAT 20 %".ljust(columns - len(vat)) + vat,
        "",
        rng.choice(("CARD", "CASH")),
        "Thank you!".center(columns),
    ]
    margin, advance = 30, 27
    width = round(face.getlength("-" * columns)) + 2 * margin
    sheet = paper(rng, width, advance * len(lines) + 110, tone=246)
    pen = ImageDraw.Draw(sheet)
    pen.text((width / 2, 48), shop, INK, large, anchor="mm")
    for i, line in enumerate(lines):
        pen.text((margin, 78 + i * advance), line, INK, bold if line.startswith("TOTAL") else face)
    question = (
        'Read the receipt. Answer with one JSON object only: {"shop": ..., "date": "YYYY-MM-DD", '
        '"items": [{"name": ..., "quantity": ..., "price": price of one}], "total": ...}'
    )
    items = [{"name": name, "quantity": quantity, "price": price} for name, quantity, price in bought]
    answer = {"shop": shop, "date": date, "items": items, "total": total}
    return Item.make("receipt", ask(question, sheet), json.dumps(answer), 0.0, "fields")


def table(rng: random.Random) -> Item:
    """One cell of a ruled table."""
    sheet, cells = _ruled(rng)
    (city, measure), value = rng.choice(list(cells.items()))
    question = f"What does the table say for {measure} in {city}? Answer with the number only."
    return Item.make("table", ask(question, sheet), str(value), 0.0, "count")


def missing(rng: random.Random) -> Item:
    """A cell of a table, or half of the time of a town that is not in it."""
    sheet, cells = _ruled(rng)
    (city, measure), value = rng.choice(list(cells.items()))
    gone = rng.random() < 0.5
    if gone:
        city = rng.choice([name for name in CITIES if not any(name == other for other, _ in cells)])
    question = (
        f"What does the table say for {measure} in {city}? Answer with the number only; "
        "if the town is not in the table, answer: none"
    )
    answer = "none" if gone else str(value)
    return Item.make("table-missing", ask(question, sheet), answer, 1 / 2, "words")


def _ruled(rng: random.Random) -> tuple[Image.Image, dict[tuple[str, str], int]]:
    """A table of towns and what was counted there; its cells."""
    face, bold, head = font("sans", 17), font("bold", 17), font("serif-bold", 24)
    cities = sorted(rng.sample(CITIES, rng.randint(5, 9)))  # one is always left out
    measures = rng.sample(MEASURES, rng.randint(3, 5))
    cells = {(c, m): rng.randint(12, 9800) for c in cities for m in measures}
    first, column, row, top = 130, 118, 36, 96
    width = first + column * len(measures) + 60
    sheet = paper(rng, width, top + row * (len(cities) + 1) + 60)
    pen = ImageDraw.Draw(sheet)
    pen.text((30, 40), f"Quarterly figures {rng.randint(2011, 2025)}", INK, head)
    for j, name in enumerate(("Town", *measures)):
        x = 40 if j == 0 else 30 + first + j * column - 12
        pen.text((x, top + row / 2), name, INK, bold, anchor="lm" if j == 0 else "rm")
    for i, city in enumerate(cities, start=1):
        y = top + i * row
        if i % 2:
            pen.rectangle((30, y, width - 30, y + row), fill=(233, 237, 243))
        pen.text((40, y + row / 2), city, INK, face, anchor="lm")
        for j, measure in enumerate(measures, start=1):
            pen.text(
                (30 + first + j * column - 12, y + row / 2),
                f"{cells[city, measure]:,}",
                INK,
                face,
                anchor="rm",
            )
    for y in (top, top + row, top + row * (len(cities) + 1)):
        pen.line((30, y, width - 30, y), fill=INK, width=2)
    return sheet, cells


def chart(rng: random.Random) -> Item:
    """The value of one bar or point, to 5 %: what a reader of the axis can tell."""
    months = MONTHS[(start := rng.randint(0, 5)) : start + rng.randint(5, 7)]
    step = rng.choice((10, 20, 50, 100, 250))
    values = [step * rng.randint(8, 40) / 8 for _ in months]
    width, height, left, bottom, top = 704, 480, 86, 410, 76
    sheet = Image.new("RGB", (width, height), "white")
    pen, face = ImageDraw.Draw(sheet), font("sans", 16)
    title, tint = f"{rng.choice(TITLES)}, {rng.randint(2011, 2025)}", rng.choice(TINTS)
    pen.text((width / 2, 36), title, INK, font("bold", 21), anchor="mm")
    scale = (bottom - top) / (step * 5)
    for tick in range(6):
        y = bottom - tick * step * scale
        pen.line((left, y, width - 30, y), fill=(215, 215, 215) if tick else INK)
        pen.text((left - 10, y), f"{tick * step:,}", INK, face, anchor="rm")
    slot = (width - 30 - left) / len(months)
    points = [(left + (i + 0.5) * slot, bottom - value * scale) for i, value in enumerate(values)]
    if rng.random() < 0.5:
        for x, y in points:
            pen.rectangle((x - slot * 0.3, y, x + slot * 0.3, bottom), fill=tint)
    else:
        pen.line(points, fill=tint, width=3)
        for x, y in points:
            pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=tint)
    for (x, _), month in zip(points, months, strict=True):
        pen.text((x, bottom + 20), month, INK, face, anchor="mm")
    i = rng.randrange(len(months))
    question = f"About what is the value for {months[i]}? Answer with a number only."
    return Item.make("chart", ask(question, sheet), f"{values[i]:g}", 0.0, "number")


def pages(rng: random.Random, task: str = "pages", count: int = 4) -> Item:
    """Typed pages, one of which tells the code that is asked for."""
    needle, name, answer = prose.needle(rng)
    told = rng.randrange(count)
    title = f"Annals of {rng.choice(CITIES)}, {rng.randint(1950, 2020)}"
    sheets = []
    for number in range(count):
        sentences = [prose.sentence(rng) for _ in range(12)]
        if number == told:
            sentences[rng.randint(1, 10)] = needle
        sheets.append(typed(rng, title, sentences, number + 1))
    question = f"What is the access code of {name}? Answer with the number only."
    return Item.make(task, ask(question, *sheets), answer, 0.0, "count")


def typed(rng: random.Random, title: str, sentences: list[str], number: int) -> Image.Image:
    """Sentences set as paragraphs of four under a running head, the page's number at the foot."""
    face, margin, advance = font("serif", 18), 62, 28
    sheet = paper(rng, *PAGE)
    pen = ImageDraw.Draw(sheet)
    pen.text((margin, 40), title, INK, font("serif-bold", 16))
    pen.line((margin, 66, PAGE[0] - margin, 66), fill=INK)
    y = 84
    for first in range(0, len(sentences), 4):
        for line in wrapped(" ".join(sentences[first : first + 4]), face, PAGE[0] - 2 * margin):
            pen.text((margin, y), line, INK, face)
            y += advance
        y += advance // 2
    pen.text((PAGE[0] / 2, PAGE[1] - 30), f"– {number} –", INK, face, anchor="mm")
    return sheet


def wrapped(text: str, face: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of words that are no wider."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


TASKS: dict[str, Make] = {
    "receipt": receipt,
    "table": table,
    "table-missing": missing,
    "chart": chart,
    "pages": pages,
}
