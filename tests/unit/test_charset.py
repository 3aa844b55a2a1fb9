"""A text from outside is read in the encoding that it is in, by the order of the web's standards."""

import codecs
import time

import pytest

from worker.tools.charset import _CODECS, codec_of, decoded

UTF_8, UTF_16_LE, UTF_16_BE = codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
META = b'<html><head><meta charset="shift_jis"><title>'
HTTP_EQUIV = b"<meta http-equiv='Content-Type' content='text/html; charset=windows-1251'>"

CASES: dict[str, tuple[bytes, str | None, str]] = {
    "nothing said, UTF-8": ("grüße".encode(), None, "grüße"),
    "nothing said, no UTF-8": ("grüße".encode("cp1252"), None, "gr\ufffd\ufffde"),
    "the header": ("grüße".encode("cp1252"), "iso-8859-1", "grüße"),
    "the header, as browsers take latin1": ("„€“".encode("cp1252"), "latin1", "„€“"),
    "the header, with another stroke": ("é".encode("cp1252"), "latin-1", "é"),
    "the header, ascii": ("é".encode("cp1252"), "us-ascii", "é"),
    "the header, in capitals and quotes": ("é".encode("cp1252"), ' "ISO-8859-1" ', "é"),
    "the header, gb2312": ("€汉字".encode("gb18030"), "gb2312", "€汉字"),
    "the header, gb18030": ("😀".encode("gb18030"), "gb18030", "😀"),
    "the header, gbk": ("汉字".encode("gbk"), "GBK", "汉字"),
    "the header, shift_jis with characters of Windows": ("①～".encode("cp932"), "shift_jis", "①～"),
    "the header, euc-kr": ("똠방각하".encode("cp949"), "ks_c_5601-1987", "똠방각하"),
    "the header, big5": ("漢字".encode("big5"), "big5", "漢字"),
    "the header, euc-jp": ("漢字".encode("euc_jp"), "euc-jp", "漢字"),
    "the header, iso-2022-jp": ("漢字".encode("iso2022_jp"), "iso-2022-jp", "漢字"),
    "the header, koi8-r": ("текст".encode("koi8-r"), "koi8-r", "текст"),
    "the header, tis-620": ("ไทย".encode("cp874"), "tis-620", "ไทย"),
    "the header, latin5": ("ğ".encode("cp1254"), "iso-8859-9", "ğ"),
    "the header, utf-16": ("grüße".encode("utf-16-le"), "utf-16", "grüße"),
    "the header, utf-16be": ("grüße".encode("utf-16-be"), "utf-16be", "grüße"),
    "a mark of UTF-8": (UTF_8 + b"a", None, "a"),
    "a mark of UTF-16, little": (UTF_16_LE + "grüße".encode("utf-16-le"), None, "grüße"),
    "a mark of UTF-16, big": (UTF_16_BE + "grüße".encode("utf-16-be"), None, "grüße"),
    "a mark goes before the header": (UTF_8 + "é".encode(), "iso-8859-1", "é"),
    "a mark goes before meta": (UTF_8 + META + "é".encode(), None, META.decode() + "é"),
    "the header goes before meta": (META + "é".encode("cp1252"), "windows-1252", META.decode() + "é"),
    "a header that is none, then meta": (META + "漢字".encode("cp932"), "nonsense", META.decode() + "漢字"),
    "a header that is none": ("é".encode(), "nonsense", "é"),
    "a header that only Python knows": ("+AOk-é".encode(), "utf-7", "+AOk-é"),
    "meta": (META + "漢字".encode("cp932"), None, META.decode() + "漢字"),
    "meta without quotes": (
        b"<META CHARSET=koi8-r />" + "текст".encode("koi8-r"),
        None,
        "<META CHARSET=koi8-r />текст",
    ),
    "meta by http-equiv": (HTTP_EQUIV + "текст".encode("cp1251"), None, HTTP_EQUIV.decode() + "текст"),
    "meta with content alone": (
        b'<meta content="charset=koi8-r">' + "é".encode(),
        None,
        '<meta content="charset=koi8-r">é',
    ),
    "meta that says UTF-16 and cannot be": (b"<meta charset=utf-16>" + "é".encode(), None, "<meta charset=utf-16>é"),
    "meta in a comment": (b"<!-- <meta charset=koi8-r> -->" + "é".encode(), None, "<!-- <meta charset=koi8-r> -->é"),
    "meta that is none, then one": (
        b"<meta charset=nonsense><meta charset=koi8-r>" + "т".encode("koi8-r"),
        None,
        "<meta charset=nonsense><meta charset=koi8-r>т",
    ),
    "another word that begins so": (b"<metadata charset=koi8-r>" + "é".encode(), None, "<metadata charset=koi8-r>é"),
    "meta at the end of the first 1,024 bytes": (
        b" " * (1024 - 22) + b"<meta charset=koi8-r >" + "т".encode("koi8-r"),
        None,
        " " * (1024 - 22) + "<meta charset=koi8-r >т",
    ),
    "meta behind the first 1,024 bytes": (
        b" " * 1024 + b"<meta charset=koi8-r>" + "é".encode(),
        None,
        " " * 1024 + "<meta charset=koi8-r>é",
    ),
    "XML": (
        b'<?xml version="1.0" encoding="ISO-8859-1"?>' + "é".encode("cp1252"),
        None,
        '<?xml version="1.0" encoding="ISO-8859-1"?>é',
    ),
    "XML in UTF-16 without a mark": ('<?xml version="1.0"?>é'.encode("utf-16-le"), None, '<?xml version="1.0"?>é'),
    "nothing at all": (b"", None, ""),
    "half a character at the end": ("é".encode()[:1], None, "\ufffd"),
    "half of UTF-16 at the end": (UTF_16_LE + b"a\0b", None, "a\ufffd"),
}


@pytest.mark.parametrize(("body", "header", "text"), CASES.values(), ids=CASES.keys())
def test_a_page_is_read_in_its_encoding(body: bytes, header: str | None, text: str) -> None:
    assert decoded(body, header, is_page=True) == text


def test_what_is_no_page_does_not_name_its_own() -> None:
    assert decoded(META + "é".encode(), None, is_page=False) == META.decode() + "é"


@pytest.mark.parametrize("codec", sorted(set(_CODECS.values())))
def test_each_codec_is_there_and_reads_any_bytes_as_text(codec: str) -> None:
    assert isinstance(bytes(range(256)).decode(codec, "replace"), str)


@pytest.mark.parametrize(
    "name", ["", "zlib", "idna", "rot13", "hex", "utf-7", "utf_8_sig", "utf-32", "\0", "x" * 10_000]
)
def test_what_is_no_charset_of_the_web_is_none(name: str) -> None:
    assert codec_of(name) is None


@pytest.mark.parametrize("part", [b"<meta ", b"<!--", b"<meta charset", b"<?xml ", b'<meta a="', b"= ", b"<meta a=b "])
def test_a_hostile_head_takes_no_time(part: bytes) -> None:
    began = time.process_time()
    decoded(part * 400, None, is_page=True)
    assert time.process_time() - began < 0.1
