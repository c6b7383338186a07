"""Pictures and what they are called: the data of the demo in colour.

The pictures are Microsoft's Fluent Emoji (MIT), as the npm package `@lobehub/fluent-emoji-3d` has them; names and keywords
are those of the Unicode CLDR (Unicode-3.0), packages `cldr-annotations-full` and `cldr-annotations-derived-full`. `npm pack`
fetches each as one file.

Things of one colour are drawn in others, too: what "a blue apple" looks like nobody has drawn, and a model that has seen
some of these finds the others.  One in twenty of the variants (a thing in a colour, a person in a skin tone) and of the
captions is withheld from training.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SIZE = 128  # pixels
HUES = {"red": 0, "orange": 28, "yellow": 50, "green": 120, "blue": 212, "purple": 272, "pink": 325}  # degrees
COLOURS = re.compile(rf"\b({'|'.join(HUES)}|black|white|brown|grey|gray)\b ?")
TONE = re.compile("[\U0001f3fb-\U0001f3ff]")
FLAG = re.compile("[\U0001f1e6-\U0001f1ff\U000e0000-\U000e007f]|\U0001f3f4|\u20e3")  # flags and keys
SIGN = re.compile(r"\b(button|arrow|symbol|sign|no|prohibited)\b")
END_OF_TAGS = "\U000e007f"  # which the file names of some flags lack
WITHHELD = frozenset({"blue heart", "purple car", "green cat", "pink elephant", "blue rose"})  # to look at
ONE_IN, KEYWORDS, RARE = 20, 8, 4


class Emoji(NamedTuple):
    """A picture, (SIZE, SIZE, 3) of uint8 on white, and its words."""

    name: str
    keywords: tuple[str, ...]
    pixels: np.ndarray
    weight: float  # how often it is drawn in training
    variant: bool  # of another picture: a colour or a skin tone


def withheld(text: str) -> bool:
    """One in twenty, the same in every run."""
    return text in WITHHELD or int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % ONE_IN == 0


def read(pictures: Path, *names: Path) -> list[Emoji]:
    """All that is in the packages, with the colours that we add, in an order that is always the same."""
    words = dict(annotations(names))
    with tarfile.open(pictures) as packed:
        files = {m.name: packed.extractfile(m).read() for m in packed if m.name.endswith(".webp")}  # type: ignore[union-attr]
    codes = {"".join(chr(int(c, 16)) for c in re.split("[-_]", Path(f).stem)): data for f, data in sorted(files.items())}
    known = {
        code: next(words[c] for c in (code, code.replace("\ufe0f", ""), code + END_OF_TAGS) if c in words) for code in codes
    }
    sizes = Counter(known[code][0].split(":")[0] for code in codes)
    with ThreadPoolExecutor() as pool:
        versions = pool.map(lambda code: variants(code, *known[code], codes[code], sizes), codes)
        return [emoji for some in versions for emoji in some]


def annotations(packages: Sequence[Path]) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """What each character is called in English, and its keywords."""
    for package in packages:
        with tarfile.open(package) as packed:
            file = next(m for m in packed if re.search(r"/annotations(Derived)?/en/annotations\.json$", m.name))
            tree = json.load(packed.extractfile(file))  # type: ignore[arg-type]
        for character, said in next(iter(tree.values()))["annotations"].items():
            yield character, (said["tts"][0].lower(), tuple(k.lower() for k in said.get("default", ())))


def variants(code: str, name: str, keywords: tuple[str, ...], data: bytes, sizes: Counter[str]) -> Iterator[Emoji]:
    """The picture itself, and what it is in other colours."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    toned = bool(TONE.search(code))
    yield Emoji(name, keywords, on_white(image), 1 / np.sqrt(sizes[name.split(":")[0]]), toned or name.endswith(" heart"))
    if (
        sizes[name.split(":")[0]] > 1 or FLAG.search(code) or SIGN.search(name)
    ):  # people, flags and signs are what they are by their colours
        return
    hue = one_hue(image)
    noun = COLOURS.sub("", name).strip()
    if hue is not None and noun:
        for colour, degrees in HUES.items():
            if abs((degrees - hue + 180) % 360 - 180) > 20:
                kept = tuple(k for k in keywords if not COLOURS.search(k))
                yield Emoji(f"{colour} {noun}", kept, on_white(turned(image, degrees - hue)), 0.15, True)


def on_white(image: Image.Image) -> np.ndarray:
    """Its middle on white, SIZE x SIZE."""
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return np.asarray(ground.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def one_hue(image: Image.Image) -> float | None:
    """The hue in degrees of what has one colour for the most part; None for anything else."""
    hue, saturation, value = np.moveaxis(np.asarray(image.convert("RGB").convert("HSV"), float), 2, 0)
    solid = np.asarray(image)[..., 3] > 128
    weight = solid * (saturation > 90) * (value > 130) * saturation  # dark and pale things look the same in any hue
    if weight.astype(bool).sum() < 0.5 * solid.sum():
        return None
    mean = (weight * np.exp(2j * np.pi * hue / 256)).sum() / weight.sum()
    return float(np.degrees(np.angle(mean)) % 360) if abs(mean) > 0.9 else None


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """Every hue turned."""
    hsv = np.array(image.convert("RGB").convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(int) + round(degrees * 256 / 360)) % 256
    other = Image.fromarray(hsv, "HSV").convert("RGB")
    other.putalpha(image.getchannel("A"))
    return other


def captions(emojis: Sequence[Emoji]) -> list[list[str]]:
    """What each may be asked for with; what says it plainly stands there more often."""
    rare = Counter(k for emoji in emojis if not emoji.variant for k in emoji.keywords)
    return [list(said(emoji, rare)) for emoji in emojis]


def said(emoji: Emoji, rare: Counter[str]) -> Iterator[str]:
    name = emoji.name
    plain = re.sub(r" face\b", "", name) or name
    thing = with_article(name)
    yield from (name, name, name, thing, thing, with_article(plain), f"a picture of {thing}", f"{name} emoji")
    further = [k for k in emoji.keywords if k not in name][:KEYWORDS]
    for word in further:
        yield f"{name}, {word}"
        yield f"{word} {plain}"
        if rare[word] <= RARE and not emoji.variant:
            yield word
    if ":" in name:  # "pilot: dark skin tone"
        who, how = name.split(":", 1)
        yield from (f"{with_article(who)} with {how.strip()}", f"{how.strip()} {who}")


def with_article(noun: str) -> str:
    """An apple, a pear, two hearts."""
    if re.match(r"(a|an|the|one|two|three|four) ", noun) or (noun.endswith("s") and not noun.endswith("ss")):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def split(emojis: Sequence[Emoji]) -> tuple[list[Emoji], list[Emoji]]:
    """Those to train on, and the variants that are withheld."""
    out = [emoji.variant and withheld(emoji.name) for emoji in emojis]
    return [e for e, no in zip(emojis, out, strict=True) if not no], [e for e, no in zip(emojis, out, strict=True) if no]
