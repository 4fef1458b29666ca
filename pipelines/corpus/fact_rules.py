"""Forms in which the predicate of a sentence states a fact, and the question that the fact answers.

Group `a` of a pattern is the answer; without it the article itself is ("What is the capital of Spain?"). The other
groups, and `{s}`, the subject, fill the question. A form that is often wrong is left out: precision comes first.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A form of predicates.

    Attributes:
        first: holds for first sentences alone, which say what the article's subject is.
        person: holds for people alone.
    """

    name: str
    pattern: re.Pattern[str]
    question: str
    first: bool = False
    person: bool = False


def _first(name: str, pattern: str, question: str) -> Rule:
    return Rule(name, re.compile(pattern), question, first=True)


def _any(name: str, pattern: str, question: str, *, person: bool = False) -> Rule:
    return Rule(name, re.compile(pattern), question, person=person)


# --- parts of patterns -----------------------------------------------------------------------------------------------
# Names and dates are atomic groups, (?>…): a name that cannot be followed as required is not cut short instead.

_UPPER = "A-ZÀ-ÞĀĆČĐĪŁŌŚŠŪŽ"
_WORD = rf"(?:U\.S\.|D\.C\.|[{_UPPER}][\w’'-]*(?:\.(?= [{_UPPER}]))?)"
_JOINT = r"(?:of the|of|de la|de|van der|van|von|der|da|di|du|del|la|le|al|ibn|bin)"
_NAME = rf"(?>{_WORD}(?: (?:{_JOINT} )?{_WORD})*)"
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DAY = rf"(?:\d{{1,2}} {_MONTH} |{_MONTH} (?:\d{{1,2}}, )?)"
_DATE = rf"(?>(?:{_DAY})?[1-9]\d\d\d?(?: BCE?| AD| CE)?)(?![\w–-]| and \d| to \d| or \d)"
_ADJECTIVE = r"[A-Z][a-z]+(?:an|ese|ish|ch|ic|ek|ss)"
_NATION = rf"(?:(?:South|North|Early|Old|High) )?{_ADJECTIVE}(?:[ -]{_ADJECTIVE})?"
# "the South Korean rapper ", "the "; no small word of a name ("Miguel de ").
_SMALL = r"(?:(?!(?:de|van|von|da|of)\b)[a-z][a-z-]+ )"
_ROLE = rf"(?:(?:the |an? )?(?:{_NATION}(?: and {_NATION})? )?{_SMALL}{{1,4}}|the )?"
_GOES_ON = rf"(?:,? and [{_UPPER}]|, [{_UPPER}]|[\w’'-]| (?:for|the) [{_UPPER}]| (?:dynasty|empire|family)\b)"
_BY = rf"by {_ROLE}(?!{_NATION} [a-z])(?P<a>(?>{_NAME}(?: and {_NAME})?))(?!{_GOES_ON})"
_PART = r"(?:(?:state|province|region|county|district|island|city|department|coast|foothills) of (?:the )?)?"
_LIST = rf"(?>{_NAME}(?:, {_NAME})*(?:,? and {_NAME})?)(?<!tern)(?<!thern)"  # no "the Northern" of "the Northern part"
_PLACE = rf"(?:the )?(?:(?!the )[a-z]+(?:-[a-z]+)? ){{0,3}}{_PART}{_LIST}"
_STOP = r"(?=[.,;]|$| and | that | which | who | on | with | at | near | where | between | along | by )"
_IS = r"^(?:is|was|are|were) (?:an?|the) "
_PLAIN = r"(?:(?!\bby\b|\bof\b|\bin the\b|\bbased\b|\badapt)[^.;,])*?"  # no other work, no other maker
_TEXT = (
    r"(?:novel|novella|book|play|poem|treatise|essay|short story|tragedy|comedy|fairy tale|memoir|autobiography|"
    r"pamphlet|trilogy|sonnet|satire)"
)
_MUSIC = r"(?:opera|symphony|ballet|oratorio|concerto|operetta|suite|musical composition|piano piece)"
_OFFICE = (
    r"(?:king|queen|emperor|empress|president|prime minister|sultan|shah|tsar|caliph|pharaoh|chancellor|pope|ruler|"
    r"monarch|secretary-general|governor)"
)
_LAND = (
    r"(?:city|town|village|municipality|commune|country|state|province|region|river|lake|sea|bay|gulf|strait|mountain|"
    r"volcano|desert|peninsula|island|archipelago|valley|waterfall|canal|mountain range|castle|palace|cathedral|"
    r"church|mosque|temple|museum|university|bridge|tower|stadium|park)"
)
_ORDER = (
    r"(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|\d+(?:st|nd|rd|th)|"
    r"[a-z]+-(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth))"
)
_MOST = (
    r"(?:largest|longest|highest|tallest|deepest|smallest|oldest|busiest|most populous|most spoken|southernmost|"
    r"northernmost|easternmost|westernmost)"
)
_MADE = (
    r"(?:founded|established|built|discovered|invented|designed|developed|created|introduced|formulated|painted|"
    r"composed|directed|coined|proposed)"
)
_DATED = (
    r"(?:founded|established|built|completed|discovered|invented|released|published|introduced|formed|incorporated|"
    r"opened|launched|signed|adopted|abolished|dissolved|painted|written|created|inaugurated|ratified)"
)
_HELD = (
    r"(?:official currency|currency|SI unit|SI base unit|SI derived unit|parliament|national anthem|national flag|"
    r"national airline|flag carrier|central bank|official language|legislature|official residence|holy book|"
    r"supreme court|stock exchange|state religion|governing body|patron saint|powerhouse)"
)
_DOING = r"(?:process|art|act|practice|transfer|theory|use|production|science|application|branch of [a-z]+)"
_KIND = r"(?:(?!(?:in|by|for|to|from|with|on|at|through|under|name|term|type|form|set|group|one|only)\b)[a-z-]+ ){1,5}"
_VERB = r"(?:[a-z]+(?:ed|es|[bcdfghklmnprtvwxy]s)|was|had|can|may|is|has|led|won|wrote|became|ran|held|began)"

RULES = (
    _first("wrote", rf"{_IS}{_PLAIN}\b{_TEXT}(?: {_PLAIN})? (?:written )?(?<!ed ){_BY}", "Who wrote {s}?"),
    _first("directed", rf"\bfilm\b.*?\bdirected {_BY}", "Who directed {s}?"),
    _first("composed", rf"{_IS}{_PLAIN}\b{_MUSIC}(?: {_PLAIN})? (?:composed )?{_BY}", "Who composed {s}?"),
    _first(
        "painted", rf"{_IS}{_PLAIN}\b(?:painting|fresco|mural)(?: {_PLAIN})? (?:painted )?{_BY}", "Who painted {s}?"
    ),
    _first(
        "recorded",
        rf"{_IS}{_PLAIN}\b(?P<k>album|song|single) (?:(?:written and )?recorded |performed |released )?{_BY}",
        "Who recorded the {k} {s}?",
    ),
    _first("maker", rf"{_IS}(?:[\w'-]+ ){{1,6}}(?P<v>{_MADE}) {_BY}", "Who {v} {s}?"),
    _any(
        "made by",
        rf"^(?:is|was|were)(?: first| originally)? (?P<v>{_MADE})(?: (?:in|on) {_DATE})? {_BY}",
        "Who {v} {s}?",
    ),
    _any(
        "dated",
        rf"^(?:was|were)(?: first| originally| officially| formally)? (?P<v>{_DATED})(?: by [^,.;]{{1,50}}?)?"
        rf" (?:in|on) (?P<a>{_DATE})",
        "When was {s} {v}?",
    ),
    _first(
        "year of a work",
        rf"{_IS}(?P<a>1[4-9]\d\d|20\d\d) [^,.;]*?\b(?P<k>film|novel|novella|album|song|play|book|poem)\b",
        "When did the {k} {s} come out?",
    ),
    _any("founded in", rf"^(?:Founded|Established|Formed) in (?P<a>{_DATE}),", "When was {s} founded?"),
    _any(
        "born at",
        rf"^(?:was b|B)orn(?: (?:on|in) {_DATE})?(?:,)? (?:in|at) (?!the House)(?P<a>{_PLACE}){_STOP}",
        "Where was {s} born?",
        person=True,
    ),
    _any("born on", rf"^(?:was b|B)orn (?:on|in) (?P<a>{_DATE})", "When was {s} born?", person=True),
    _any("died on", rf"^died (?:in [^,.;]*? )?(?:on|in) (?P<a>{_DATE})", "When did {s} die?", person=True),
    _any("fought", rf"^was fought (?:(?!from|between)[^.;])*?\bon (?P<a>{_DATE})", "When was {s} fought?"),
    _any("took place", rf"^took place (?:on|in) (?P<a>{_DATE})", "When did {s} take place?"),
    _any("seat", rf"^(?:is|are) [^.;]*?\bheadquartered in (?P<a>{_PLACE}){_STOP}", "Where is {s} headquartered?"),
    _any("located", rf"^(?:is|are) (?:located|situated) (?:in|on) (?P<a>{_PLACE}){_STOP}", "Where is {s} located?"),
    _first(
        "in a place",
        rf"^is (?:a|an|the) (?:[a-z-]+ ){{0,3}}{_LAND}(?: located| situated)? in (?P<a>{_PLACE}){_STOP}",
        "Where is {s} located?",
    ),
    _first(
        "capital",
        rf"^is the (?:current |national |provincial |official )?capital(?: city)?(?: and (?:[\w-]+ ){{0,4}}city)? of "
        rf"(?P<p>(?:the )?{_NAME}){_STOP}",
        "What is the capital of {p}?",
    ),
    _first(
        "most",
        rf"^is the (?:capital and )?(?P<m>(?:{_ORDER}[ -])?{_MOST} [a-z]+(?: [a-z]+)? (?:in|of|on) (?:the )?{_NAME})"
        rf"{_STOP}",
        "What is the {m}?",
    ),
    _first(
        "office", rf"^was the (?P<m>{_ORDER} (?:[A-Za-z-]+ )?{_OFFICE} of (?:the )?{_NAME}){_STOP}", "Who was the {m}?"
    ),
    _first(
        "god",
        rf"^(?:is|was) (?:the|an?) (?P<m>(?:ancient )?{_NATION} god(?:dess)? of [^.;()]{{3,60}})\.",
        "Who is the {m}?",
    ),
    _first("holds", rf"^is the (?P<m>{_HELD} (?:of|in|for) [^.,;()]{{3,50}}?){_STOP}", "What is the {m}?"),
    _first("study", r"^is the (?P<m>(?:[a-z]+ )?study of [^.,;()]{5,90})[.;]", "What is the {m} called?"),
    _first(
        "doing",
        rf"^is the (?P<m>{_DOING} (?:of|by which|in which|that) [^.,;()]{{12,110}})[.;]",
        "What is the {m} called?",
    ),
    _first("symbol", r"chemical element\b.*?\bsymbol (?P<a>[A-Z][a-z]?)\b", "What is the chemical symbol of {s}?"),
    _first("number", r"chemical element\b.*?\batomic number (?P<a>\d+)\b", "What is the atomic number of {s}?"),
    _first(
        "which",
        rf"^(?:is|was) (?:an?|the) (?P<m>(?:{_NATION} )?{_KIND}(?:of [a-z]+ )?)(?:that|which|who) "
        rf"(?P<v>{_VERB} [^.:;()]{{25,130}})\.",
        "Which {m}{v}?",
    ),
    _first(
        "person",
        rf"^was [^.;]*?\bwho (?P<v>discovered|invented|founded|wrote|composed|painted|directed|designed) "
        rf"(?P<o>(?:the )?(?:novel |play |poem |opera )?{_NAME}){_STOP}",
        "Who {v} {o}?",
    ),
)
