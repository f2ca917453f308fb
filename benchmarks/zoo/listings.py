"""A second caption grammar: titles, adverts, questions and instructions in place of scenes.

It shares no template with the scenes and few words, so that towers that were trained on one can be
measured, and scanned, with prompts of the other.
"""

from __future__ import annotations

import random

from benchmarks.zoo.words import rare_words

_TOPICS = {
    "sport": (
        "racket helmet goalkeeper marathon stadium ticket trophy referee swimmer cyclist ski "
        "snowboard treadmill dumbbell jersey volleyball boxing archery rowing tournament",
        "professional junior indoor waterproof lightweight local national rival olympic seasonal",
        "kick throw catch train score stretch warm row",
    ),
    "technology": (
        "keyboard router processor monitor printer tablet charger headphone drone sensor robot "
        "battery antenna server microphone projector smartwatch software browser password",
        "wireless portable rechargeable compact digital outdated encrypted foldable faulty smart",
        "install repair update connect reset compare charge unlock",
    ),
    "nature": (
        "orchid fern cactus maple acorn mushroom glacier coral lagoon meteor eclipse monsoon "
        "tornado earthquake beetle hummingbird salmon hedgehog walrus moss",
        "tropical endangered poisonous nocturnal migrating carnivorous rare evergreen native wild",
        "grow water observe protect identify photograph collect plant",
    ),
    "home": (
        "sofa curtain wardrobe faucet dishwasher toaster staircase fireplace wallpaper bookshelf "
        "mattress cupboard doormat chimney balcony teapot freezer radiator cushion drill",
        "rustic ceramic stainless oak secondhand adjustable scandinavian leather marble cosy",
        "clean paint decorate assemble polish replace measure fix",
    ),
    "culture": (
        "opera novel sculpture fresco violinist orchestra ballet manuscript coin mosaic festival "
        "comedian poem portrait comic documentary soundtrack theatre carnival museum",
        "baroque medieval experimental forgotten acclaimed gothic contemporary folk roman lost",
        "watch perform restore review translate record describe draw",
    ),
    "health": (
        "bandage stethoscope vitamin dentist surgeon wheelchair thermometer yoga massage allergy "
        "vaccine ointment clinic pharmacy ambulance mask tablet syringe nutrition pillow",
        "herbal chronic pediatric sterile daily natural organic gentle urgent effective",
        "treat prevent diagnose relieve monitor heal support choose",
    ),
    "trade": (
        "invoice warehouse crane welder forklift bakery contract harvest tractor barrel anvil "
        "loom auction factory cargo apprentice lumber brick mine market",
        "wholesale industrial handmade certified imported heavy vintage affordable bulk local",
        "sell build ship rent weigh load order inspect",
    ),
}
_FRAMES = (
    "how to {verb} your {noun} in {number} steps|{adjective} {noun}, {material}, {century}|"
    "{noun} for sale: {adjective}, {adjective2}, {condition}|the {adjective} {noun} of {town}|"
    "{number} reasons to {verb} a {noun}|why does my {noun} not {verb}?|"
    "{noun} versus {noun2}: which one to {verb}|best {noun} shops of {town}, {year}|"
    "do not {verb} the {noun} without a {noun2}|map of every {noun} around {town}|"
    "{town} opens a museum of the {noun}|interview: my life as a {noun} collector|"
    "infographic: {noun} and {noun2} since {year}|"
    "logo with {adjective} {noun}, {colour} on {colour2}|"
    "{adjective} {noun} icon set, {colour}|learn to {verb}: {noun} course for beginners|"
    "{colour} {noun} with {material} handle, {condition}|who invented the {noun}?|"
    "recall of {adjective} {noun} after complaint from {town}|one {noun}, {number} {noun2} owners|"
    "{noun}|{adjective} {noun}|{verb} a {noun}|{noun} by {noun2} maker from {town}|"
    "wanted: {noun}, {colour}, {condition}|diagram of a {noun} next to its {noun2}"
).split("|")
_FILLERS = {
    "number": "three five seven ten twelve twenty".split(),
    "material": "bronze|silk|walnut|porcelain|carbon fibre|recycled plastic|brass|cotton".split(
        "|"
    ),
    "century": "17th century|18th century|victorian era|1920s|early renaissance|1970s".split("|"),
    "condition": (
        "like new|slightly worn|for collectors|unopened box|needs work|fully tested".split("|")
    ),
    "town": "oslo lisbon nairobi kyoto toronto lima cairo dublin hanoi prague boston".split(),
    "year": "1901 1954 1988 2003 2012 2019 2024".split(),
    "colour": "teal crimson ivory navy olive maroon turquoise charcoal".split(),
    "colour2": "white beige khaki lilac coral amber".split(),
}
DOMAINS = tuple(_TOPICS)


def _listing(rng: random.Random, domains: tuple[str, ...]) -> str:
    nouns, adjectives, verbs = (words.split() for words in _TOPICS[rng.choice(domains)])

    def noun() -> str:
        return rng.choice(rare_words() if rng.random() < 0.33 else nouns)

    adjective, adjective2 = rng.sample(adjectives, 2)
    fillers = {name: rng.choice(choices) for name, choices in _FILLERS.items()}
    frame = rng.choice(_FRAMES)
    listing = frame.format(
        noun=noun(),
        noun2=noun(),
        verb=rng.choice(verbs),
        adjective=adjective,
        adjective2=adjective2,
        **fillers,
    )
    return f"{listing} ({fillers['year']})" if rng.random() < 0.1 else listing


def listings(count: int, seed: int, domains: tuple[str, ...] = DOMAINS) -> list[str]:
    """`count` distinct listings of the given domains; the same seed gives the same list."""
    rng = random.Random(seed)  # noqa: S311 - reproducible data, not secrets
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(_listing(rng, domains))
    return list(found)
