"""Write captions from the attributes of a picture: a different true sentence each time, as people would write it."""

import random

from .pictures import Attributes

STYLE_WORDS = {
    "lorelei": "lorelei",
    "adventurer": "adventurer",
    "openPeeps": "peeps",
    "micah": "micah",
    "personas": "personas",
    "toonHead": "toon",
}

SUBJECTS = (
    "portrait of a person",
    "a portrait",
    "a person",
    "person",
    "face",
    "avatar of a person",
    "character portrait",
    "a character",
)

HAIR_PHRASES = {
    "short": ("short {} hair",),
    "curly": ("curly {} hair", "{} curly hair"),
    "spiky": ("spiky {} hair", "{} spiky hair"),
    "bob": ("{} bob hair", "a {} bob haircut"),
    "long": ("long {} hair", "{} long hair"),
    "bun": ("a {} bun", "{} hair in a bun"),
    "two buns": ("two {} buns", "{} hair in two buns"),
    "ponytail": ("a {} ponytail",),
    "mohawk": ("a {} mohawk",),
    "flowers": ("{} hair with flowers",),
    "pigtails": ("{} pigtails",),
    "braid": ("a {} braid", "braided {} hair"),
    "afro": ("an {} afro", "{} afro hair"),
    "flat top": ("a {} flat top", "{} flat top hair"),
    "bald": ("a bald head",),
    "beanie": ("a beanie", "a knitted hat"),
    "hat": ("a hat",),
    "hijab": ("a hijab",),
    "turban": ("a turban",),
}

SYNONYMS = {
    "blond": ("blond", "blonde"),
    "gray": ("gray", "grey"),
    "orange": ("orange", "ginger"),
    "pale": ("pale", "light"),
    "glasses": ("glasses", "eyeglasses"),
    "sunglasses": ("sunglasses", "dark sunglasses"),
    "moustache": ("moustache", "mustache"),
    "smiling": ("smiling", "happy"),
    "laughing": ("laughing", "with a big smile"),
    "sad": ("sad", "frowning"),
    "surprised": ("surprised", "shocked"),
    "neutral": ("serious", "neutral expression"),
    "blush": ("blushing cheeks",),
}

SHIRT_PHRASES = ("{} shirt", "{} shirt", "wearing a {} shirt", "{} clothes")
BACKGROUND_PHRASES = ("{} background", "{} background", "on a {} background")

CHANCES = {"hair": 0.9, "skin": 0.75, "worn": 0.9, "expression": 0.9, "shirt": 0.7, "background": 0.85, "style": 0.88}
"""Chance that an attribute of a picture is mentioned. The model has to leave open what is not."""


def caption(person: Attributes, chooser: random.Random) -> str:
    """Describe a person with some of the attributes, in random order and words."""

    def mention(kind: str) -> bool:
        return chooser.random() < CHANCES[kind]

    features = _features(person, chooser)
    scene = []
    if mention("expression"):
        scene.append(_synonym(person["expression"], chooser))
    if person["shirt"] and mention("shirt"):
        scene.append(chooser.choice(SHIRT_PHRASES).format(person["shirt"]))
    if mention("background"):
        scene.append(chooser.choice(BACKGROUND_PHRASES).format(_synonym(person["background"], chooser, only="gray")))
    chooser.shuffle(features)
    chooser.shuffle(scene)
    subject = chooser.choice(SUBJECTS)
    if features and chooser.random() < 0.6:
        parts = [f"{subject} with {_enumerate(features, chooser)}", *scene]
    else:
        rest = features + scene
        chooser.shuffle(rest)
        parts = [subject, *rest]
    if mention("style"):
        word = STYLE_WORDS[person["style"]]
        index = 0 if chooser.random() < 0.2 else len(parts)
        parts.insert(index, chooser.choice((f"{word} style", f"{word} style", f"in {word} style")))
    return ", ".join(parts)


def _features(person: Attributes, chooser: random.Random) -> list[str]:
    """Describe the head: hair, skin and what is worn or grows on the face."""
    features = []
    if chooser.random() < CHANCES["hair"]:
        features.append(_hair(person, chooser))
    if chooser.random() < CHANCES["skin"]:
        features.append(f"{_synonym(person['skin'], chooser)} skin")
    if person["glasses"] and chooser.random() < CHANCES["worn"]:
        features.append(_synonym(person["glasses"], chooser))
    if person["beard"] and chooser.random() < CHANCES["worn"]:
        features.append(_join("a", person["beardColor"] or "", _synonym(person["beard"], chooser)))
    if person["earrings"] and chooser.random() < 0.5:
        features.append("earrings")
    if person["feature"] and chooser.random() < CHANCES["worn"]:
        features.append(_synonym(person["feature"], chooser))
    return features


def _hair(person: Attributes, chooser: random.Random) -> str:
    color = _synonym(person["hairColor"], chooser) if person["hairColor"] else ""
    phrase = " ".join(chooser.choice(HAIR_PHRASES[person["hair"]]).format(color).split())
    article, _, rest = phrase.partition(" ")
    return _join("a", "", rest) if article in ("a", "an") else phrase


def _join(article: str, adjective: str, noun: str) -> str:
    """Join the words; the article becomes "an" before a vowel."""
    words = f"{adjective} {noun}".strip()
    return f"{article}n {words}" if words[0] in "aeio" else f"{article} {words}"


def _synonym(word: str, chooser: random.Random, only: str | None = None) -> str:
    if only is not None and word != only:
        return word
    return chooser.choice(SYNONYMS.get(word, (word,)))


def _enumerate(phrases: list[str], chooser: random.Random) -> str:
    if len(phrases) == 1:
        return phrases[0]
    last = chooser.choice((" and ", " and ", ", "))
    return ", ".join(phrases[:-1]) + last + phrases[-1]
