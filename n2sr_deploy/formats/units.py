"""Units of length and time, by the spellings found in files."""

from __future__ import annotations

# One of each in nanometres, by the spellings found in files.
_NANOMETRES = {
    "pm": 1e-3,
    "å": 0.1,
    "angstrom": 0.1,
    "angstroms": 0.1,
    "ångström": 0.1,
    "a": 0.1,
    "nm": 1.0,
    "n_m": 1.0,
    "nanometer": 1.0,
    "nanometers": 1.0,
    "nanometre": 1.0,
    "µm": 1e3,
    "μm": 1e3,
    "um": 1e3,
    "u_m": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "micrometers": 1e3,
    "micrometre": 1e3,
    "mm": 1e6,
    "cm": 1e7,
    "m": 1e9,
    "meter": 1e9,
    "meters": 1e9,
    "metre": 1e9,
}

# One of each in seconds.
_SECONDS = {
    "ns": 1e-9,
    "µs": 1e-6,
    "μs": 1e-6,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "seconds": 1.0,
    "min": 60.0,
    "h": 3600.0,
}
_ASCII = str.maketrans({"µ": "u", "μ": "u", "Å": "A", "⁻": "^-", "¹": "1", "²": "2", "·": "*"})
_NO_UNIT = {"", "px", "pixel", "pixels", "none", "reference frame", "[]", "[px]", "[pixels]"}


def nanometres(unit: str | None) -> float | None:
    """How many nanometres one `unit` is; None when it is no length n2sr knows."""
    return _NANOMETRES.get(unit.strip().lower()) if unit else None


def ascii_unit(unit: str | None) -> str:
    """As TIFF can spell it, whose texts are ASCII."""
    return (unit or "").translate(_ASCII).encode("ascii", "replace").decode()


def length_told(length: float, unit: str) -> str:
    """A length in words; by another unit where it takes more than three digits or is below 0.1."""
    nm = nanometres(unit)
    if nm is not None and not 0.1 <= length < 1000:
        in_nm = length * nm
        unit = next((u for u in ("m", "mm", "µm", "nm") if in_nm >= _NANOMETRES[u]), "pm")
        length = in_nm / _NANOMETRES[unit]
    return f"{float(f'{length:.3g}'):g} {unit}"


def size_in_nm(size: tuple[float, float] | None, unit: str | None) -> tuple[float, float] | None:
    """A pixel's height and width in nanometres; None when they are not known, or no lengths."""
    nm = nanometres(unit)
    return None if size is None or nm is None else (size[0] * nm, size[1] * nm)


def seconds(unit: str | None) -> float | None:
    """How many seconds one `unit` is; None when it is no time n2sr knows."""
    return _SECONDS.get(unit.strip().lower()) if unit else None


def one_unit(
    height: tuple[float, str | None], width: tuple[float, str | None]
) -> tuple[tuple[float, float] | None, str | None]:
    """Pixel size and unit from each side's; nothing where the units cannot be reconciled."""
    if height[1] == width[1]:
        return (height[0], width[0]), width[1]
    nm = nanometres(height[1]), nanometres(width[1])
    if nm[0] is None or nm[1] is None:
        return None, None
    return (height[0] * nm[0] / nm[1], width[0]), width[1]


def is_no_unit(spelled: str | None) -> bool:
    """Whether it only says that places are counted in pixels."""
    return (spelled or "").strip().lower() in _NO_UNIT


def plain_unit(spelled: str) -> str | None:
    """A unit as EMD spells it: ``[n_m]`` as nm, None where there is none."""
    if is_no_unit(spelled):
        return None
    plain = spelled.replace("[", "").replace("]", "").replace("_", "")
    return "µ" + plain[1:] if plain.startswith("u") and len(plain) <= 2 else plain
