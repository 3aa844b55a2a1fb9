"""What a terminal, and a log that is read in one, can be given: text without what steers a terminal or hides in it.

Text that came from a run, a model or a server outside may hold escape sequences (colours, cursor moves, titles,
hyperlinks), control characters of C0 and C1, characters that turn the reading direction, and ones that nobody sees
(zero-width spaces, soft hyphens, fillers, tags, variation selectors), which hide what is meant for a model. Tabs stay,
and the two joiners without which Persian, Hindi and many emoji are not written right.
"""

import re

_SEQUENCE = re.compile(
    # CSI, also with its introducer in one character; strings (OSC, DCS, SOS, PM, APC) up to their end; the rest.
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
_UNSEEN = (
    "\x00-\x08\x0a-\x1f\x7f-\x9f\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb"
    "\ud800-\udfff\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
"""Control characters, halves of characters, and what Unicode calls Default_Ignorable_Code_Point or Cf (format)."""
_UNSAFE = re.compile(f"[{_UNSEEN}]|(?<![^\\s\u200c\u200d\ufe0e\ufe0f{_UNSEEN}])[\ufe0e\ufe0f]")
"""The two that choose between text and emoji are safe only directly behind a character that is seen."""


def printable(text: str) -> str:
    """One line that a terminal can be given."""
    return one_for_one(_SEQUENCE.sub("", text).rstrip("\r\n").replace("\r", " "))


def one_for_one(text: str) -> str:
    """The same number of characters, each unsafe one as U+FFFD."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def escaped(text: str) -> str:
    """One line that shows what was in it: `\\x1b`, `\\n`, `\\u202e`."""
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")
