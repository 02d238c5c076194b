"""Pictures and videos in a question: '8 frame videos of 720p', 'two 1024x768 images'."""

from __future__ import annotations

import re

from memplan.planner.tables.errors import UsageError
from memplan.validate.reading import B, E, Reading

LINES = {"480p": "854x480", "720p": "1280x720", "1080p": "1920x1080", "1440p": "2560x1440", "4k": "3840x2160"}
"""Usual names of a frame's size -> width x height."""
_COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "一": 1, "两": 2, "三": 3, "四": 4}
_SIZE = rf"(?P<size>\d{{2,5}}\s*[x×*]\s*\d{{2,5}}|{'|'.join(LINES)})(?:\s*(?:pixels?|px|像素))?"
_FRAMES = r"(?P<frames>\d{1,5})[\s-]*(?:frames?|帧)(?:的)?"
_KIND = r"(?P<kind>videos?|clips?|images?|pictures?|photos?|视频|图片|图像|图)"
_COUNT = rf"(?:(?P<count>\d{{1,3}}|{'|'.join(_COUNTS)})(?:\s*[张个段]\s*|\s+))?"
_BETWEEN = r"(?:\s*[-,(]?\s*(?:of|at|with|in|each|是|的|,)?\s*)"
_SIZE2, _FRAMES2 = _SIZE.replace("<size>", "<size2>"), _FRAMES.replace("<frames>", "<frames2>")
_ORDERS = (
    rf"{_COUNT}{_FRAMES}{_BETWEEN}(?:{_SIZE}{_BETWEEN})?{_KIND}(?:{_BETWEEN}{_SIZE2})?",
    rf"{_COUNT}{_SIZE}{_BETWEEN}{_KIND}(?:{_BETWEEN}{_FRAMES})?",
    rf"{_COUNT}{_KIND}{_BETWEEN}(?:{_FRAMES}{_BETWEEN})?{_SIZE}(?:{_BETWEEN}{_FRAMES2})?",
)
_STILL = re.compile(r"image|picture|photo|图")


def shown_of(reading: Reading) -> None:
    """Sets `images` where the sentence says pictures or videos. Raises UsageError where it says no size, or a
    video without its frames.
    """
    for order in _ORDERS:
        match = re.search(f"{B}(?:{order}){E}", reading.text)
        if match is None:
            continue
        said = match.groupdict()
        size, frames = said.get("size") or said.get("size2"), said.get("frames") or said.get("frames2")
        words, still = match.group().strip(), _STILL.match(said["kind"]) is not None
        if size is None:
            raise UsageError(f"ask: '{words}': no size: say it, as in 8 frame videos of 640x480, or 720p")
        if frames is None and not still:
            raise UsageError(f"ask: '{words}': how many frames? say 16 frame videos of {size}")
        wide_high = LINES.get(size) or re.sub(r"\s*[×*x]\s*", "x", size)
        count = _COUNTS.get(said["count"] or "a") or int(said["count"])
        length = f"x{frames}" if frames else ""
        reading.say("images", (f"{count}@{wide_high}{length}",), reading.take(match))
        return
