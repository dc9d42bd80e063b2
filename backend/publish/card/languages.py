"""Languages as a card may name them: the Hub takes ISO 639 codes, `code` and `multilingual`, and refuses all else.

It refuses the whole commit, so that what stands otherwise in a base model's card is turned into codes or left out.
"""

import re
from collections.abc import Iterable

_NAMED = """
    afrikaans af, albanian sq, amharic am, arabic ar, armenian hy, assamese as, azerbaijani az, basque eu,
    belarusian be, bengali bn, bosnian bs, breton br, bulgarian bg, burmese my, cantonese yue, catalan ca,
    chinese zh, mandarin zh,
    croatian hr, czech cs, danish da, dutch nl, flemish nl, english en, esperanto eo, estonian et, filipino tl,
    tagalog tl, finnish fi, french fr, galician gl, georgian ka, german de, greek el, gujarati gu, haitian ht, hausa ha,
    hebrew he, hindi hi, hungarian hu, icelandic is, igbo ig, indonesian id, irish ga, italian it, japanese ja,
    javanese jv, kannada kn, kazakh kk, khmer km, korean ko, kurdish ku, kyrgyz ky, lao lo, latin la, latvian lv,
    lithuanian lt, luxembourgish lb, macedonian mk, malagasy mg, malay ms, malayalam ml, maltese mt, marathi mr,
    mongolian mn, nepali ne, norwegian no, odia or, oriya or, pashto ps, persian fa, farsi fa, polish pl, portuguese pt,
    punjabi pa, quechua qu, romanian ro, russian ru, sanskrit sa, serbian sr, sindhi sd, sinhala si, slovak sk,
    slovenian sl, somali so, spanish es, castilian es, sundanese su, swahili sw, swedish sv, tajik tg, tamil ta,
    tatar tt, telugu te, thai th, tibetan bo, turkish tr, turkmen tk, ukrainian uk, urdu ur, uyghur ug, uzbek uz,
    vietnamese vi, welsh cy, wolof wo, xhosa xh, yiddish yi, yoruba yo, zulu zu,
    deutsch de, español es, français fr, italiano it, português pt, 中文 zh, 日本語 ja, 한국어 ko, русский ru,
    programming code, multilingual multilingual, code code,
    cn zh, jp ja, cz cs, dk da, gr el, ua uk, vn vi
"""

_PAIRS = _NAMED.replace(",", " ").split()

CODES = dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True))
"""What people call a language, codes of countries among it, in small letters, and what the Hub calls it."""

_CODE = re.compile(r"[a-z]{2,3}")
_SEPARATOR = re.compile(r"[,;/&|]|\band\b")
_FIRST = re.compile(r"[^\W\d_]+")


def hub_languages(named: Iterable[str]) -> list[str]:
    """Return what the Hub takes of languages, in order and each once.

    Args:
        named: Codes, BCP 47 tags such as zh-CN, or names; what is none of these is left out.
    """
    words = (word.strip().lower() for name in named for word in _SEPARATOR.split(name[:200]))
    return list(dict.fromkeys(code for word in words if (code := _code(word))))


def _code(word: str) -> str | None:
    first = _FIRST.match(word)
    if first is None:
        return None
    return CODES.get(first[0]) or (first[0] if _CODE.fullmatch(first[0]) and " " not in word else None)
