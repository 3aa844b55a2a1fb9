"""Applies unified diffs to texts: pure, so that a patch is known to fit before anything is written.

Context has to be there exactly; where the file has moved on, a hunk is looked for nearby. There is no fuzz: a patch
that does not fit as it is fits by luck. Every line of a patch is applied, or none is, and the error shows the line that
did not fit. A patch may be applied to what it was applied to before (a worker was lost in the middle of several files):
each file shows by itself whether it is as before the patch or as after it. Where it could be both, nothing is done.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from backplane.domain.sizes import shortened
from backplane.errors import Conflict, NotFound
from worker.tools.unified_diff import FilePatch, Hunk

MAX_OFFSET_LINES = 1000
SHOWN_LINES = 3
SHOWN_CHARS = 120
SHOWN_PLACES = 5

Files = dict[str, bytes | None]
"""Contents by path; None: there is no such file."""


def apply_patches(patches: Sequence[FilePatch], before: Files) -> Files:
    """All files as they are after the patch. Raises Conflict when one does not fit."""
    return apply_with_notes(patches, before)[0]


def apply_with_notes(patches: Sequence[FilePatch], before: Files) -> tuple[Files, list[str]]:
    """As `apply_patches`; and a line for people on each hunk that fitted at another line than its head says."""
    files, notes = dict(before), list[str]()
    for patch in patches:
        if patch.before is None and patch.after is not None:
            files[patch.after] = _made(patch, patch.after, files[patch.after])
        elif patch.after is None and patch.before is not None:
            _check_deleted(patch, patch.before, files[patch.before])
            files[patch.before] = None
        elif patch.before == patch.after and patch.before is not None:
            files[patch.before] = _changed(patch, patch.before, files[patch.before], notes)
        elif patch.before is not None and patch.after is not None:
            files[patch.after] = _renamed(patch, patch.before, patch.after, files, notes)
            files[patch.before] = None
    return files, notes


def _made(patch: FilePatch, path: str, present: bytes | None) -> bytes:
    new = text_of_new_file(patch)
    if present is not None and present != new:
        raise Conflict(f"{path} is a new file in the patch, and is there already with other content")
    return new


def _check_deleted(patch: FilePatch, path: str, present: bytes | None) -> None:
    if present is not None and not deletes(patch, present):
        raise Conflict(f"{path} is to be deleted, and its content is not what the patch says; nothing was changed")


def _changed(patch: FilePatch, path: str, present: bytes | None, notes: list[str]) -> bytes:
    if not patch.hunks and present is not None:
        return present  # only its mode changes
    if patch.hunks and not any(hunk.source for hunk in patch.hunks) and present in (None, text_of_new_file(patch)):
        return text_of_new_file(patch)  # models write new files so, with their own name in place of /dev/null
    if present is None:
        raise NotFound(f"there is no file {path}, which the patch changes; nothing was changed")
    new = apply_hunks(patch.hunks, present, path, notes)
    return present if new is None else new


def _renamed(patch: FilePatch, before: str, after: str, files: Files, notes: list[str]) -> bytes:
    source, target = files[before], files[after]
    if source is None:
        if target is None or (patch.hunks and apply_hunks(patch.hunks, target, after) is not None):
            raise NotFound(f"there is no file {before}, which the patch renames; nothing was changed")
        return target
    new = _changed(patch, before, source, notes) if patch.hunks else source
    if target is not None and target != new:
        raise Conflict(f"{before} is to become {after}, which is there already; nothing was changed")
    return new


def apply_hunks(hunks: Sequence[Hunk], content: bytes, path: str, notes: list[str] | None = None) -> bytes | None:
    """The text after the patch; None when it is as after the patch already. Raises Conflict when it does not fit.
    `notes` gets the lines of `apply_with_notes`."""
    lines = _split(content)
    if lines and all(line.endswith(b"\r\n") for line in lines if line.endswith(b"\n")):
        hunks = [_with_crlf(hunk) for hunk in hunks]
    if lines and any(not hunk.source for hunk in hunks):
        raise Conflict(
            f"a hunk adds lines to {path} without a line of context, so that where is not known; give it some"
        )
    if lines and not lines[-1].endswith(b"\n"):
        hunks = [_without_last_break(hunk, lines) for hunk in hunks]
    forward, is_applied = _places(lines, hunks, edges=True), _is_applied(lines, hunks, edges=True)
    if isinstance(forward, int) and not is_applied:
        forward, is_applied = _places(lines, hunks, edges=False), _is_applied(lines, hunks, edges=False)
    if isinstance(forward, int):
        if is_applied:
            return None
        raise Conflict(_does_not_fit(lines, hunks, forward, path))
    if is_applied and not all(map(_only_deletes, hunks)):
        raise Conflict(
            f"{path} is as before the patch and as after it, both: it cannot be known whether it was applied; give the "
            "hunks more lines of context. Nothing was changed"
        )
    result, done, drift = list[bytes](), 0, 0
    for number, (hunk, at) in enumerate(zip(hunks, forward, strict=True), 1):
        is_where_stated = hunk.source_at is not None and at == hunk.source_at + drift
        if not is_where_stated and len(places := _first_places(lines, hunk.source, done)) > 1:
            reason = "its head has no line number" if hunk.source_at is None else "not at the line that its head says"
            raise Conflict(
                f"the hunk of line {hunk.line} of the patch fits {path} in several places (at the lines "
                f"{', '.join(str(place + 1) for place in places[:SHOWN_PLACES])}"
                f"{', …' if len(places) > SHOWN_PLACES else ''}), and {reason}; give it the right one "
                "(@@ -LINE,COUNT +LINE,COUNT @@), or more context. Nothing was changed"
            )
        if notes is not None and hunk.source_at is not None and at != hunk.source_at:
            notes.append(f"{path}: hunk {number} fitted at line {at + 1}, not {hunk.source_at + 1}")
        drift = at - hunk.source_at if hunk.source_at is not None else drift
        result += [*lines[done:at], *hunk.target]
        done = at + len(hunk.source)
    return b"".join([*result, *lines[done:]])


def text_of_new_file(patch: FilePatch) -> bytes:
    return b"".join(line for hunk in patch.hunks for line in hunk.target)


def deletes(patch: FilePatch, content: bytes) -> bool:
    """Whether the content is what the patch deletes."""
    text = b"".join(line for hunk in patch.hunks for line in hunk.source)
    return text in (content, content.replace(b"\r\n", b"\n"))


def _places(lines: Sequence[bytes], hunks: Sequence[Hunk], *, edges: bool) -> list[int] | int:
    """The line where each hunk's source stands, in this order, none in another; else which of them is nowhere. `edges`:
    what has no context before or after it stands at the file's beginning or end, as in the diffs of whole files."""
    found: list[int] = []
    first, drift = 0, 0
    for number, hunk in enumerate(hunks):
        sought = hunk.source
        if hunk.source_at is None:
            place = next(_all_places(lines, sought, first), None) if sought else None if lines else 0
        else:
            place = _nearest(lines, sought, hunk.source_at + drift, first)
            if edges and place is not None:
                place = _at_its_edge(lines, hunk, place, first)
        if place is None:
            return number
        found.append(place)
        first = place + len(sought)
        drift = place - hunk.source_at if hunk.source_at is not None else drift
    return found


def _at_its_edge(lines: Sequence[bytes], hunk: Hunk, place: int, first: int) -> int | None:
    sought = hunk.source
    if not sought or hunk.source_at is None or hunk.target_at is None:
        return place
    if not hunk.leading and min(hunk.source_at, hunk.target_at) == 0:
        place = 0
        if tuple(lines[: len(sought)]) != sought:
            return None
    if not hunk.trailing:
        place = len(lines) - len(sought)
        if place < first or tuple(lines[place:]) != sought:
            return None
    return place


def _is_applied(lines: Sequence[bytes], hunks: Sequence[Hunk], *, edges: bool) -> bool:
    """Whether each hunk's target stands just where the patch puts it; what happens to fit elsewhere shows nothing. One
    without numbers shows it only by lines that it adds, in the one place where they are."""
    first = 0
    for hunk in hunks:
        at, target = hunk.target_at, hunk.target
        if at is None:
            places = list(itertools.islice(_all_places(lines, target, first), 2)) if target else []
            if len(places) != 1 or len(target) == hunk.leading + hunk.trailing:
                return False
            at = places[0]
        end = at + len(target)
        if at < first or tuple(lines[at:end]) != target or (not target and lines):
            return False
        if edges and hunk.target_at is not None and not hunk.trailing and end != len(lines):
            return False
        first = end
    return True


def _nearest(lines: Sequence[bytes], sought: tuple[bytes, ...], at: int, first: int) -> int | None:
    last = len(lines) - len(sought)
    if not sought:
        # Nothing is nowhere but in nothing: it would fit every place.
        return None if lines else 0
    for distance in range(MAX_OFFSET_LINES + 1):
        for place in (at + distance, at - distance):
            if not first <= place <= last or lines[place] != sought[0]:
                continue
            if tuple(lines[place : place + len(sought)]) == sought:
                return place
    return None


def _all_places(lines: Sequence[bytes], sought: tuple[bytes, ...], first: int) -> Iterator[int]:
    for place in range(first, len(lines) - len(sought) + 1):
        if lines[place] == sought[0] and tuple(lines[place : place + len(sought)]) == sought:
            yield place


def _first_places(lines: Sequence[bytes], sought: tuple[bytes, ...], first: int) -> list[int]:
    return list(itertools.islice(_all_places(lines, sought, first), SHOWN_PLACES + 1)) if sought else []


def _does_not_fit(lines: Sequence[bytes], hunks: Sequence[Hunk], number: int, path: str) -> str:
    """The error that shows which line of the file differs from the patch, and the lines around it."""
    hunk = hunks[number]
    at = _most_alike(lines, hunk)
    same = _alike(lines, hunk.source, at)
    if same == len(hunk.source):
        return (
            f"hunk {number + 1} (line {hunk.line} of the patch) does not fit {path}: its lines stand at line {at + 1}, "
            "which a hunk before it has or lies behind; hunks may not overlap, and stand in the order of the file. "
            "Nothing was changed"
        )
    wanted, found = hunk.source[same], lines[at + same] if at + same < len(lines) else None
    there = f"has {_shown(found)}" if found is not None else "is past the end of the file"
    if found is not None and found.rstrip(b"\r\n") == wanted.rstrip(b"\r\n"):
        there = f"ends with {_line_end(found)}"
        wanted_text = _line_end(wanted)
    else:
        wanted_text = _shown(wanted)
    around = range(max(0, at + same - SHOWN_LINES), min(len(lines), at + same + SHOWN_LINES + 1))
    shown = "\n".join(f"{line + 1:>6}  {_shown(lines[line], quoted=False)}" for line in around)
    return (
        f"hunk {number + 1} (line {hunk.line} of the patch) does not fit {path}: line {at + same + 1} {there}, where "
        f"the patch says {wanted_text}. Nothing was changed. The file there:\n{shown or '      (empty)'}"
    )


def _line_end(line: bytes) -> str:
    return {b"\r\n": "CR LF", b"\n": "LF", b"": "no line break"}.get(line[len(line.rstrip(b"\r\n")) :], "CR")


def _most_alike(lines: Sequence[bytes], hunk: Hunk) -> int:
    """Where most of the hunk's first lines stand, the nearest of these to where it should be."""
    expected = min(hunk.source_at or 0, len(lines))
    near = range(max(0, expected - MAX_OFFSET_LINES), min(len(lines), expected + MAX_OFFSET_LINES))
    return max(near, key=lambda at: (_alike(lines, hunk.source, at), -abs(at - expected)), default=expected)


def _alike(lines: Sequence[bytes], sought: Sequence[bytes], at: int) -> int:
    same = 0
    while same < len(sought) and at + same < len(lines) and lines[at + same] == sought[same]:
        same += 1
    return same


def _shown(line: bytes, *, quoted: bool = True) -> str:
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    text = shortened(text, SHOWN_CHARS)
    return repr(text) if quoted else text


def _only_deletes(hunk: Hunk) -> bool:
    """And has context on one side only: then what is there after it is there before it, too."""
    kept = hunk.leading + hunk.trailing
    return len(hunk.target) == kept < len(hunk.source) and not (hunk.leading and hunk.trailing)


def _without_last_break(hunk: Hunk, lines: Sequence[bytes]) -> Hunk:
    """The hunk for a file whose last line has no line break, where the hunk ends with that line and does not say so."""
    last = lines[-1]
    if not hunk.source or hunk.source[-1] != last + b"\n" or not hunk.target or not hunk.target[-1].endswith(b"\n"):
        return hunk
    at = len(lines) - len(hunk.source)
    if at < 0 or tuple(lines[at:-1]) != hunk.source[:-1]:
        return hunk
    return replace(
        hunk, source=(*hunk.source[:-1], last), target=(*hunk.target[:-1], hunk.target[-1].removesuffix(b"\n"))
    )


def _split(content: bytes) -> list[bytes]:
    """At line feeds alone, which is what diffs do."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _with_crlf(hunk: Hunk) -> Hunk:
    """The hunk for a file with CR LF, where it was written without the CR."""
    if any(line.endswith(b"\r\n") for line in (*hunk.source, *hunk.target)):
        return hunk

    def changed(lines: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return tuple(line[:-1] + b"\r\n" if line.endswith(b"\n") else line for line in lines)

    return replace(hunk, source=changed(hunk.source), target=changed(hunk.target))
