"""The pictures and videos of an example, as a setup says them: their sizes, what they add to the sequence,
and what they exclude.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memplan.planner.inputs import sounds, usual_pictures
from memplan.planner.inputs.picture_arithmetic import picture
from memplan.planner.inputs.picture_sizes import Limits, Picture, has_tower, rule_of
from memplan.planner.tables.errors import UsageError, shown
from memplan.planner.tables.pictures import (
    USUAL,
    USUAL_VIDEO,
    USUAL_WORD,
    WITH_PICTURES,
    WITHOUT,
    WITHOUT_SIZES,
)

if TYPE_CHECKING:
    from memplan.planner.inputs.video_sizes import Seen

NONE = "none"
_WRITTEN = re.compile(
    r"(?:(?P<count>[1-9]\d{0,3})@)?(?P<width>[1-9]\d{0,4})x(?P<height>[1-9]\d{0,4})"
    r"(?:x(?P<length>[1-9]\d{0,4})(?P<seconds>s)?)?"
)
TEXT = 512
"""Tokens of text beside pictures where nobody says a length and the default has no room for them."""


def read_sizes(written: tuple[str, ...]) -> list[Seen]:
    """Each picture and video of one example, from N@WxH and N@WxHxFRAMES or N@WxHxSECONDSs, where N@ is 1@ if
    left out; nothing for `none`. UsageError.
    """
    if not written or written in ((NONE,), (USUAL_WORD,)):
        return []
    from memplan.planner.inputs.video_sizes import Seen

    sizes: list[Seen] = []
    for each in written:
        found = _WRITTEN.fullmatch(each)
        if found is None:
            raise UsageError(
                f"images (--images) {shown(each)}: expected N@WxH, pictures of one example and their width "
                "and height in pixels, as in 1@1024x768; N@WxHxFRAMES, videos, as in 1@1280x720x16, or "
                "1@1280x720x30s for seconds; usual, one of the recipe's own size; or none"
            )
        length = int(found["length"] or 0)
        seen = Seen(
            int(found["width"]),
            int(found["height"]),
            frames=0 if found["seconds"] else length,
            seconds=length if found["seconds"] else 0,
        )
        sizes += [seen] * int(found["count"] or 1)
    return sizes


def pictures_of(config: Mapping[str, Any], setup: Any) -> list[Picture]:
    """The pictures and videos of one example under a setup, as the model's processor makes them. Raises
    UsageError.
    """
    sizes = read_sizes(setup.images)
    if not sizes:
        return []
    from memplan.planner.inputs.video_sizes import FrameLimits, video

    rule = rule_of(config)
    for name, allowed in _ALLOWED.items():
        if getattr(setup, name) is not None and rule.arithmetic not in allowed:
            before = name.split("_")[0] + "_scaled_to"
            raise UsageError(
                f"{name} {getattr(setup, name)}: the processor of '{rule.model_type}' has no such limit: "
                f"leave it out, or use {before}, which scales before the processor"
            )
    limits = Limits(setup.image_min_pixels, setup.image_max_pixels, setup.image_tiles, setup.image_scaled_to)
    pixels = Limits(setup.video_min_pixels, setup.video_max_pixels, None, setup.video_scaled_to)
    frames = FrameLimits(setup.video_fps, setup.video_frames, pixels)
    made = [
        video(config, seen, frames) if seen.moves else picture(config, seen.width, seen.height, limits)
        for seen in sizes
    ]
    _together(config, made)
    return made


def _together(config: Mapping[str, Any], made: list[Picture]) -> None:
    """Raises UsageError where one row cannot have both."""
    from memplan.planner.inputs.video_sizes import video_rule_of

    lengths = {each.frames for each in made}
    if len(lengths) > 1 and any(lengths) and not video_rule_of(config).apart:
        raise UsageError(
            f"images: a '{config.get('model_type')}' model reads pictures and frames as one tensor, of which "
            "memplan has no rule for rows that mix them or videos of several lengths: say one kind"
        )


_ALLOWED = {
    "image_min_pixels": ("patches",),
    "image_max_pixels": ("patches",),
    "image_tiles": ("splits", "tiles", "chunks"),
    "video_min_pixels": ("patches",),
    "video_max_pixels": ("patches",),
}


def length_of(config: Mapping[str, Any], setup: Any) -> int:
    """Tokens of one example that are pictures, their markers among them."""
    return sum(each.length for each in pictures_of(config, setup))


def contradictions(s: Any) -> list[tuple[bool, str]]:
    """Choices that pictures exclude, each with the sentence that says so and what to do instead."""
    with_pictures, said = bool(read_sizes(s.images)), f"images {','.join(s.images)}"
    why = WITHOUT.get(s.task, "memplan has no rule for them")
    others = ", ".join(WITH_PICTURES)
    return [
        (
            with_pictures and s.packed_documents > 1,
            f"packed_documents {s.packed_documents} contradicts {said}: TRL packs no pictures, and memplan "
            "has no rule for stacks that do: leave packing out",
        ),
        (
            with_pictures and s.task not in WITH_PICTURES,
            f"{said}: task '{s.task}' has no pictures, {why}: leave --images out, or use another --task "
            f"({others})",
        ),
        (
            with_pictures and s.device == "cpu",
            f"{said}: pictures have no rule for device cpu: leave --device out",
        ),
    ]


def lengths(config: Mapping[str, Any], setup: Any) -> dict[str, int]:
    """The `sequence_length` that a setup's pictures and text have together, where it is another than the
    setup's. Raises UsageError where the pictures alone are longer than what was said.
    """
    pictures, sampled = length_of(config, setup), setup.completion_length or 0
    length, text = setup.sequence_length, setup.text_length
    said = setup.origins.get("sequence_length") not in (None, "default")
    if text is not None:
        if said and length != pictures + text:
            raise UsageError(
                f"text_length {text} and pictures of {pictures:,} tokens are {pictures + text:,} tokens, "
                f"sequence_length (--seq) is {length:,}: leave one of them out"
            )
        return {"sequence_length": pictures + text}
    if pictures + sampled < length:
        return {}
    if said and not usual_pictures.is_assumed(setup):
        beside = f", and {sampled:,} are sampled" if sampled else ""
        raise UsageError(
            f"sequence_length (--seq) {length:,}: the pictures of {','.join(setup.images)} are {pictures:,} "
            f"tokens of it{beside}; use --seq {pictures + sampled + TEXT}, or --set "
            f"text_length={sampled + TEXT} for so many beside them"
        )
    return {"sequence_length": pictures + sampled + TEXT}


def with_lengths(config: Mapping[str, Any], setup: Any) -> Any:
    """The setup with the size of its usual pictures, the length of its pictures and text, or of its sounds.
    Raises UsageError.
    """
    setup = usual_pictures.resolved(config, usual_pictures.nameable(config, setup))
    if sounds.is_speech(config):
        changes = sounds.lengths(config, setup)
    elif not read_sizes(setup.images) and setup.text_length is None:
        return setup
    else:
        changes = lengths(config, setup)
    origins = {**setup.origins, **dict.fromkeys(changes, "model" if sounds.is_speech(config) else "images")}
    return setup.with_(**changes, origins=origins) if changes else setup


def uncounted(config: Mapping[str, Any], setup: Any) -> tuple[str, ...]:
    """What of a model's parts beside its language model a setup leaves open: a prediction without it is a
    lower bound.
    """
    if usual_pictures.is_open(setup) and not has_tower(config):
        return (f"{WITHOUT_SIZES[0]} (this config.json is of the language part)",)
    if not has_tower(config) or (setup.images and not usual_pictures.is_open(setup)):
        return ()
    try:
        (size,) = read_sizes((USUAL,))
        tokens = picture(config, size.width, size.height).length
        example = f"; one of {size} is {tokens:,} tokens{_video_like(config)}"
    except UsageError:  # a processor without a rule, an audio model
        return (
            f"pictures or sounds of a {config.get('model_type')} model, and what its tower saves for them",
        )
    return (
        f"pictures: no size was given{example} (--images {USUAL}; --images none where all examples are text)",
    )


def _video_like(config: Mapping[str, Any]) -> str:
    """How many tokens a usual video is, "" where the model has no rule for videos."""
    from memplan.planner.inputs.video_sizes import video
    from memplan.planner.tables.videos import VIDEOS

    if config.get("model_type") not in VIDEOS:
        return ""
    (seen,) = read_sizes((USUAL_VIDEO,))
    return f", a video of {seen} (frames) {video(config, seen).length:,}"


def said_of(config: Mapping[str, Any], setup: Any) -> str:
    """The sentence about a setup's pictures or sounds, "" where it has none."""
    if sounds.is_speech(config):
        return sounds.said_of(config, setup)
    made = pictures_of(config, setup)
    if not made:
        return ""
    from memplan.planner.inputs.video_sizes import video_rule_of

    tokens, markers = sum(each.tokens for each in made), sum(each.markers for each in made)
    beside = setup.sequence_length - tokens - markers
    sources = {video_rule_of(config).source if each.frames else rule_of(config).source for each in made}
    kinds = " and ".join(
        kind
        for kind, there in (("pictures", lambda f: not f), ("videos", bool))
        if any(there(e.frames) for e in made)
    )
    return (
        f"{usual_pictures.in_words(setup)}{kinds} {','.join(setup.images)}: {tokens:,} tokens and "
        f"{markers:,} around them, {beside:,} of text, {setup.sequence_length:,} in all "
        f"({'; '.join(sorted(sources))})"
    )
