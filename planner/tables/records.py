"""`dataclass` for records that every start of the program loads: dataclasses' own, whose methods are written
when they are first called.

The library compiles up to six functions for each class where the class is defined, about a millisecond; 58
classes took 70 of the 500 ms of `memplan llama-7b --method qlora` (Python 3.11 dataclasses.py _create_fn,
benchmarks/bench_startup.py), and a run calls few of these methods. What a call does is the library's: the
functions that it is handed to are made by the library's decorator on a class of the same fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        """`dataclasses.dataclass` with frozen, slots, kw_only and repr."""
        return _of(cls, **options) if cls is not None else lambda cls: _of(cls, **options)


_ASKED = {
    "__repr__": {"init": False, "repr": True, "eq": False},
    "__eq__": {"init": False, "repr": False, "eq": True},
    "__hash__": {"init": False, "repr": False, "eq": True, "unsafe_hash": True},
}
"""Method -> what the library's decorator is asked for so that it writes this method alone."""


def _of(
    cls: type, *, frozen: bool = False, slots: bool = False, kw_only: bool = False, repr: bool = True
) -> type:
    own = vars(cls)
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)(cls)
    for name in ("__init__", "__eq__", *(["__repr__"] if repr else []), *(["__hash__"] if frozen else [])):
        if name not in own or (name == "__hash__" and "__eq__" not in own and own[name] is None):
            setattr(made, name, _later(made, name, frozen))
    if not frozen and "__hash__" not in own:
        made.__hash__ = None
    if frozen:
        made.__setattr__, made.__delattr__ = _no_assignment, _no_deletion
        made.__getstate__, made.__setstate__ = _values, _take
    return made  # type: ignore[no-any-return]


def _later(cls: type, name: str, frozen: bool) -> Callable[..., Any]:
    """A method that writes the real one into its class, and calls it."""

    def first(self: Any, *args: Any, **kwargs: Any) -> Any:
        written = _written(cls, name, frozen)
        setattr(cls, name, written)
        return written(self, *args, **kwargs)

    first.__name__, first.__qualname__ = name, f"{cls.__qualname__}.{name}"
    return first


def _written(cls: Any, name: str, frozen: bool) -> Callable[..., Any]:
    """The method of that name for a class's fields."""
    return _initializer(cls, frozen) if name == "__init__" else _librarys(cls, name)


def _librarys(cls: Any, name: str) -> Callable[..., Any]:
    """The library's method for a class of the same fields."""
    names = ("default", "default_factory", "repr", "hash", "compare", "kw_only")
    fields = dataclasses.fields(cls)
    body: dict[str, Any] = {f.name: dataclasses.field(**{n: getattr(f, n) for n in names}) for f in fields}
    body["__annotations__"] = {f.name: f.type for f in fields}
    written = vars(dataclasses.dataclass(**_ASKED[name])(type(cls.__name__, (), body)))[name]
    written.__qualname__ = f"{cls.__qualname__}.{name}"
    return written  # type: ignore[no-any-return]


def _initializer(cls: Any, frozen: bool) -> Callable[..., Any]:
    """`__init__` as the library writes it (dataclasses.py _init_fn), without what a frozen class needs beside
    it.
    """
    fields = sorted((f for f in dataclasses.fields(cls)), key=lambda f: bool(f.kw_only))
    taken, lines, scope = ["self"], [], {"_set": object.__setattr__, "_made": object()}
    for f in fields:
        value, given = f.name, f.init
        if f.default_factory is not dataclasses.MISSING:
            scope[f"_new_{f.name}"] = f.default_factory
            value = f"_new_{f.name}()" if not given else f"_new_{f.name}() if {value} is _made else {value}"
        elif not given and f.default is dataclasses.MISSING:
            continue
        elif f.default is not dataclasses.MISSING:
            scope[f"_default_{f.name}"] = f.default
            value = value if given else f"_default_{f.name}"
        if given:
            if f.kw_only and "*" not in taken:
                taken.append("*")
            own = {f"_new_{f.name}": "_made", f"_default_{f.name}": f"_default_{f.name}"}
            taken.append(next((f"{f.name}={text}" for key, text in own.items() if key in scope), f.name))
        lines.append(f"_set(self, {f.name!r}, {value})" if frozen else f"self.{f.name} = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    exec(f"def __init__({', '.join(taken)}):\n " + "\n ".join(lines or ["pass"]), scope)
    written: Any = scope["__init__"]
    written.__qualname__ = f"{cls.__qualname__}.__init__"
    return written  # type: ignore[no-any-return]


def _no_assignment(self: Any, name: str, value: Any) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _no_deletion(self: Any, name: str) -> NoReturn:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _values(self: Any) -> list[Any]:
    return [getattr(self, f.name) for f in dataclasses.fields(self)]


def _take(self: Any, values: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), values, strict=True):
        object.__setattr__(self, field.name, value)
