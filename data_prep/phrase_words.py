"""Words of a phrase as tags have them: nouns in the singular and adjectives, without a dictionary."""

import re
from collections.abc import Iterable

# What names nothing and describes nothing: tags are what is left, nouns and adjectives nearly all.
STOP_WORDS = frozenset(
    """a about above across after against all along alongside amongst an and another any are area around as at away
    back be been before behind being below beneath beside between beyond both bunch but by can could couple do
    does doing down during each eight either else every few five for four from front get getting going group had
    has have having he her here hers herself him himself his holding i if in inside into is it item items its
    itself just kind large like looking lot lots made make many may me more most much my near next nine no not
    number object objects of off on one ones only onto or other others our out outside over pair pairs part past
    piece pieces s seem seems set seven several she side sides six some someone something sort such t ten than
    that the their them themselves then there these they thing things this those three through to together top
    toward towards two type under underneath until up upon various very was we wearing were what where which
    while who whose will with within without you your""".split()
)
IRREGULAR = {
    **{"men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth", "geese": "goose"},
    **{"mice": "mouse", "leaves": "leaf", "wolves": "wolf", "knives": "knife", "scarves": "scarf", "calves": "calf"},
    **{"shelves": "shelf", "loaves": "loaf", "cookies": "cookie", "movies": "movie", "hoodies": "hoodie"},
    **{"buses": "bus", "skis": "ski", "taxis": "taxi", "firemen": "fireman", "policemen": "policeman"},
    **{"snowmen": "snowman", "fishermen": "fisherman", "businessmen": "businessman", "horses": "horse"},
    **{"axes": "axe", "shoes": "shoe", "canoes": "canoe", "toes": "toe", "ties": "tie", "gentlemen": "gentleman"},
}
NO_SINGULAR = frozenset(
    """always binoculars bus canvas christmas clothes eyeglasses gas glasses goggles headphones jeans leggings lens
    less overalls pajamas pants plus scissors series shorts sunglasses sweatpants texas tights trousers""".split()
)


def singular(word: str) -> str:
    """The noun's singular by rule; wrong now and then, but always the same word for the same word.

    >>> [singular(word) for word in ("dogs", "ladies", "dresses", "men", "grass", "jeans")]
    ['dog', 'lady', 'dress', 'man', 'grass', 'jeans']
    """
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in NO_SINGULAR or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is", "ous")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes", "oes")):
        return word[:-2]
    return word[:-1]


def phrase_words(captions: Iterable[str]) -> list[str]:
    """Singular content words of the phrases, in order, with repetitions."""
    words = (word for caption in captions for word in re.findall(r"[a-z]+(?:-[a-z]+)*", caption.lower()))
    return [singular(word) for word in words if word not in STOP_WORDS and len(word) > 2]
