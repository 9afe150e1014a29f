"""Printed text to be read: six scripts clean, and five kinds of damage at three levels on any of them."""

from __future__ import annotations

import random
from functools import partial

from PIL import Image, ImageDraw

from bench.suites.drawing import DAMAGE, font, paper
from bench.suites.items import Make, ask
from bench.tasks import Item

QUESTION = "Write down the text in the picture exactly as it is printed, line by line, and nothing else."
LEVELS = 3

# Who does what, where; one word or phrase of each column makes a line. Numbers are put in for {}.
SCRIPTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "latin": (
        (
            "The old harbour",
            "Café Noël",
            "Straße {}",
            "Señor Núñez",
            "Our ferry",
            "Mrs. O'Brien",
            "Hotel Åland",
            "Dr. Žižka",
        ),
        (
            "opens at {}:30",
            "sold {} boxes of",
            "serves crème brûlée and",
            "paid €{}.50 for",
            "delivers fresh",
            "wrote to",
        ),
        (
            "jalapeños",
            "the museum",
            "ginger tea",
            "über-light sails",
            "window no. {}",
            "the night train",
            "quilts & jam",
        ),
    ),
    "cyrillic": (
        ("Старая гавань", "Наша школа", "Доктор Щукин", "Поезд № {}", "Пекарня", "Библиотека", "Ёжик"),
        ("открыта с {} часов", "купила {} ящиков", "получает свежий", "любит", "везёт", "продаёт дешёвый"),
        ("чай и мёд", "хлеб", "музей", "зимний сад", "яблоки", "книги", "подъезд {}"),
    ),
    "arabic": (
        ("المكتبة القديمة", "السوق الكبير", "الدكتور سليم", "قطار المساء", "مدرسة النور", "الفندق الجديد"),
        ("يفتح في الساعة {}", "يبيع {} صندوقا من", "يقدم", "اشترى", "يحمل"),
        ("الشاي والخبز", "التفاح", "الكتب", "القهوة الساخنة", "الحديقة", "الزيتون"),
    ),
    "chinese": (
        ("老港口", "图书馆", "王医生", "第{}中学", "夜班火车", "新华书店", "我们的渡船", "张经理"),
        ("上午{}点开门", "卖出{}箱", "正在运送", "喜欢", "每天供应", "买了新的"),
        ("绿茶和面包", "苹果", "旧地图", "热咖啡", "蓝色雨伞", "桂花糕", "机器零件"),
    ),
    "japanese": (
        (
            "古い港は",
            "図書館では",
            "山田先生は",
            "夜行列車は",
            "カフェ「みどり」は",
            "第{}小学校は",
            "この店は",
        ),
        ("朝{}時に", "毎日{}箱の", "温かい", "新しい", "北海道の", "安くて"),
        (
            "紅茶を売ります",
            "パンを運びます",
            "りんごを買いました",
            "地図を開きます",
            "コーヒーを出します",
            "野菜が好きです",
        ),
    ),
    "korean": (
        (
            "오래된 항구는",
            "도서관에서",
            "김 선생님은",
            "밤 기차는",
            "우리 빵집은",
            "제{} 중학교는",
            "새 호텔은",
        ),
        ("아침 {}시에", "매일 {}상자의", "따뜻한", "새로운", "신선한", "가까운"),
        (
            "홍차를 팝니다",
            "빵을 나릅니다",
            "사과를 샀습니다",
            "지도를 폅니다",
            "커피를 냅니다",
            "꽃을 좋아합니다",
        ),
    ),
}
JOINED = ("chinese", "japanese")  # without spaces between words
FACES = {
    "latin": ("sans", "serif", "mono", "bold", "serif-bold"),
    "cyrillic": ("sans", "serif", "mono", "bold"),
}
INKS = ((20, 20, 25), (30, 35, 80), (70, 30, 25))


def text(rng: random.Random, script: str, lines: int) -> list[str]:
    space = "" if script in JOINED else " "
    return [
        space.join(rng.choice(column).format(rng.randint(1, 23)) for column in SCRIPTS[script])
        for _ in range(lines)
    ]


def printed(rng: random.Random, script: str, lines: list[str]) -> Image.Image:
    """The lines on a sheet cut to them; Arabic begins at the right."""
    face = font(rng.choice(FACES.get(script, (script,))), rng.randint(24, 38))
    margin, advance = rng.randint(28, 60), round(face.size * rng.uniform(1.45, 1.8))
    width = round(max(face.getlength(line) for line in lines)) + 2 * margin
    sheet = paper(rng, width, advance * len(lines) + 2 * margin)
    pen, ink = ImageDraw.Draw(sheet), rng.choice(INKS)
    for i, line in enumerate(lines):
        x = width - margin - face.getlength(line) if script == "arabic" else margin
        pen.text((x, margin + i * advance), line, ink, face)
    return sheet


def clean(rng: random.Random, script: str) -> Item:
    lines = text(rng, script, rng.randint(2, 4))
    return Item.make(
        f"ocr-{script}", ask(QUESTION, printed(rng, script, lines)), "\n".join(lines), 0.0, "characters"
    )


def damaged(rng: random.Random, damage: str) -> Item:
    """Any script at any level, which is a part of the task: `ocr-blur/1` the least, `ocr-blur/3` the most."""
    script, level = rng.choice(list(SCRIPTS)), rng.randrange(LEVELS)
    lines = text(rng, script, rng.randint(1, 3))
    picture = DAMAGE[damage](printed(rng, script, lines), rng, level)
    task = f"ocr-{damage}/{level + 1}"
    return Item.make(task, ask(QUESTION, picture), "\n".join(lines), 0.0, "characters")


TASKS: dict[str, Make] = {
    **{f"ocr-{script}": partial(clean, script=script) for script in SCRIPTS},
    **{f"ocr-{damage}": partial(damaged, damage=damage) for damage in DAMAGE},
}
