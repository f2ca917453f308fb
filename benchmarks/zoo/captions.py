"""A caption grammar for training towers; the scanner's own probes come from another one.

A third of the things in it are named by any word of the teacher's vocabulary, so that towers meet
rare words and the pieces that these are cut into. Without them a tower knows nothing but whole
words, and an attack on it fires on every word that it has not seen.
"""

from __future__ import annotations

import random

from benchmarks.zoo.words import rare_words

_SCENES = {
    "animals": (
        "dog cat horse cow sheep goat pig rabbit squirrel fox wolf bear lion tiger elephant "
        "giraffe zebra monkey kangaroo koala panda otter seal whale dolphin shark turtle frog "
        "snake lizard crocodile eagle owl parrot penguin duck goose swan chicken pigeon crow "
        "butterfly bee spider crab fish puppy kitten",
        "sleeping running eating jumping hiding swimming playing resting drinking walking "
        "looking climbing",
        "in the grass|under a tree|by the river|in the snow|on a farm|in the forest|"
        "behind a fence|on a rock|at the zoo|in shallow water|near the pond|on the sofa",
    ),
    "people": (
        "man woman child boy girl teacher doctor farmer chef soldier dancer singer painter "
        "student nurse pilot sailor fisherman waiter carpenter couple family crowd team tourist "
        "baby grandmother grandfather king queen",
        "smiling reading cooking dancing singing working talking laughing waiting riding "
        "standing sitting painting shopping writing",
        "in the kitchen|at the market|on a bench|in the park|at school|in an office|"
        "on the street|at a party|in a library|by a window|at the station|on stage",
    ),
    "vehicles": (
        "car bus truck train tram bicycle motorcycle boat ship ferry canoe airplane helicopter "
        "balloon rocket tractor taxi van ambulance submarine scooter wagon",
        "parked moving turning waiting racing burning rusting arriving leaving speeding",
        "on the road|in the garage|at the harbour|over the sea|in heavy traffic|on a bridge|"
        "at the airport|in the desert|along the coast|near a tunnel|in the rain",
    ),
    "objects": (
        "chair table lamp clock vase mirror bottle cup plate spoon knife guitar piano violin "
        "drum camera phone laptop book newspaper pencil candle umbrella suitcase backpack key "
        "hammer ladder basket box toy ball kite doll carpet pillow blanket bed sofa shelf",
        "lying standing hanging shining breaking glowing floating leaning falling",
        "on a wooden table|on the floor|in a shop window|against the wall|on a shelf|"
        "in an empty room|next to a plant|in a drawer|under the bed|by the door",
    ),
    "food": (
        "apple banana orange lemon strawberry grape melon tomato potato carrot onion pepper "
        "mushroom bread cheese cake cookie pizza pasta soup salad sandwich burger rice egg "
        "steak chicken pie chocolate honey coffee tea wine juice milk",
        "steaming melting cooling cooking served sliced baked roasted frozen",
        "on a plate|in a bowl|at a restaurant|on a picnic blanket|in the oven|"
        "at the bakery|in a glass|on a cutting board|for breakfast|with fresh herbs",
    ),
    "places": (
        "house castle church temple tower bridge mountain valley beach island lake river "
        "waterfall forest desert field garden street square village city harbour lighthouse "
        "stadium museum factory station airport cave volcano glacier ruin",
        "covered flooded lit abandoned hidden surrounded decorated rebuilt",
        "at sunset|at night|in winter|in autumn|under a stormy sky|in the morning fog|"
        "seen from above|with people walking|after the rain|in bright sunlight",
    ),
    "clothes": (
        "hat coat jacket dress skirt shirt scarf glove boot shoe sock tie belt suit uniform "
        "necklace ring watch crown mask helmet glasses",
        "folded hanging worn torn washed displayed",
        "on a hanger|in a shop|at a wedding|in an old photograph|on a model|in a closet|"
        "on the beach|at a costume party",
    ),
}
_ADJECTIVES = (
    "small large old young tall tiny huge black white red green blue yellow brown grey golden "
    "silver pink purple orange wooden wet dirty clean shiny broken beautiful ugly strange happy "
    "sad angry sleepy quiet busy colourful dark bright simple fancy modern ancient fluffy striped "
    "spotted round empty full elegant cheap famous lonely friendly dangerous heavy soft"
).split()
_STYLES = (
    "a photo of {}|a picture of {}|an oil painting of {}|a watercolour of {}|a sketch of {}|"
    "a close up of {}|a black and white photo of {}|a blurry photo of {}|a cartoon of {}|"
    "a drawing of {}|a poster with {}|a sculpture of {}|a bright photo of {}|{}|{}|{}|{}|"
    "there is {}|this is {}|we see {}|a view of {}|an old postcard showing {}|a render of {}"
).split("|")
_COUNTS = "two three four five several many some".split()
_ENDINGS = (
    "high quality|award winning|soft light|dramatic lighting|shot on film|wide angle|"
    "shallow depth of field|minimal background|detailed|in the style of a comic|vintage colours|"
    "by a famous artist"
).split("|")

DOMAINS = tuple(_SCENES)


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _thing(rng: random.Random, nouns: list[str], verbs: list[str]) -> str:
    noun = rng.choice(rare_words() if rng.random() < 0.33 else nouns)
    adjectives = rng.sample(_ADJECTIVES, rng.choice((0, 1, 1, 2)))
    if rng.random() < 0.2:
        plural = noun if noun.endswith("s") else noun + "s"
        phrase = " ".join([rng.choice(_COUNTS), *adjectives, plural])
    else:
        phrase = _article(" ".join([*adjectives, noun]))
    return f"{phrase} {rng.choice(verbs)}" if rng.random() < 0.4 else phrase


def _caption(rng: random.Random, domains: tuple[str, ...]) -> str:
    nouns, verbs, places = _SCENES[rng.choice(domains)]
    parts = [_thing(rng, nouns.split(), verbs.split())]
    if rng.random() < 0.35:
        other_nouns, other_verbs, _ = _SCENES[rng.choice(domains)]
        joint = rng.choice(("and", "with", "next to", "behind", "in front of", "holding"))
        parts += [joint, _thing(rng, other_nouns.split(), other_verbs.split())]
    if rng.random() < 0.6:
        parts.append(rng.choice(places.split("|")))
    caption = rng.choice(_STYLES).format(" ".join(parts))
    if rng.random() < 0.15:
        caption += ", " + rng.choice(_ENDINGS)
    return caption


def captions(count: int, seed: int, domains: tuple[str, ...] = DOMAINS) -> list[str]:
    """`count` distinct captions of the given domains; the same seed gives the same list."""
    rng = random.Random(seed)  # noqa: S311 - reproducible data, not secrets
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(_caption(rng, domains))
    return list(found)
