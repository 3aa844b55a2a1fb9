"""Finds the encoding of a text from outside, and decodes it.

The order is that of the WHATWG's HTML and Encoding standards: a byte-order mark, the header's charset, what a page says
of itself within its first 1,024 bytes, the default. The default is UTF-8, where a browser takes one by its user's
language: a program has no language. A name that no standard knows is passed over. Labels mean what they mean to
browsers (`latin1` is windows-1252, `gb2312` is gb18030), since it is for browsers that pages are written.

What Python's own names would allow besides (`utf-7`, `idna`, `zlib`) is no charset of the web and is passed over too.
"""

import re

SNIFFED_BYTES = 1024
DEFAULT = "utf-8"

_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"))

_LABELS = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso8859-3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso8859-5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988",
    "iso8859-6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e "
    "iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7 "
    "iso_8859-7:1987 sun_eu_greek",
    "iso8859-8": "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 iso88598 iso_8859-8 "
    "iso_8859-8:1988 visual csiso88598i iso-8859-8-i logical",
    "iso8859-10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859-14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 "
    "iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 "
    "windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022_jp": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 "
    "windows-949",
    "utf-16-be": "unicodefffe utf-16be",
    "utf-16-le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
}
"""The labels of the Encoding standard by the codec of Python that reads their encoding."""

_CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}
_SQUEEZED = {re.sub("[-_]", "", label): codec for label, codec in _CODECS.items()}
"""For those that write `latin-1` and `shiftjis`, which no browser takes and nobody can take for something else."""

_WHITESPACE = "\t\n\f\r "
_META = re.compile(rb"<meta(?=[\s/>])([^>]{0,1000})", re.IGNORECASE)
_ATTRIBUTE = re.compile(rb"""([a-zA-Z][a-zA-Z0-9-]*)\s*(?:=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+)))?""")
_IN_CONTENT = re.compile(rb"""charset\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s;"']+))""", re.IGNORECASE)
_UTF_16_XML = ((b"<\0?\0x\0", "utf-16-le"), (b"\0<\0?\0x", "utf-16-be"))
_XML = re.compile(rb"""<\?xml\s[^>]{0,200}?encoding\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_COMMENT = re.compile(rb"<!--.*?(?:-->|$)", re.DOTALL)


def decoded(body: bytes, header: str | None, *, is_page: bool) -> str:
    """The text of `body`, with U+FFFD where it is no text. `header`: the charset that the header names. `is_page`: HTML
    or XML, which may name its own."""
    for mark, codec in _BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(codec, "replace")
    codec = codec_of(header) or (_of_page(body[:SNIFFED_BYTES]) if is_page else None) or DEFAULT
    return body.decode(codec, "replace")


def codec_of(label: str | None) -> str | None:
    """The codec of Python for a label; None: it is no label of the standard."""
    name = (label or "").strip(_WHITESPACE).strip("\"'").lower()
    return _CODECS.get(name) or _SQUEEZED.get(re.sub("[-_]", "", name))


def is_marked(body: bytes) -> bool:
    """Whether it begins with a byte-order mark."""
    return body.startswith(tuple(mark for mark, _ in _BOMS))


def _of_page(head: bytes) -> str | None:
    """The charset that a page names for itself. A page that can be read so far is not in UTF-16, whatever it names."""
    for begin, of_xml in _UTF_16_XML:
        if head.startswith(begin):
            return of_xml
    for name in _names(head):
        if codec := codec_of(name.decode("ascii", "replace")):
            return "utf-8" if codec.startswith("utf-16") else codec
    return None


def _names(head: bytes) -> list[bytes]:
    if found := _XML.match(head):
        return [found[1] or found[2] or b""]
    names = []
    for meta in _META.finditer(_COMMENT.sub(b"", head)):
        attributes = {
            name.lower(): double or single or plain for name, double, single, plain in _ATTRIBUTE.findall(meta[1])
        }
        if charset := attributes.get(b"charset"):
            names.append(charset)
        elif attributes.get(b"http-equiv", b"").lower() == b"content-type" and (
            within := _IN_CONTENT.search(attributes.get(b"content", b""))
        ):
            names.append(within[1] or within[2] or within[3] or b"")
    return names
