"""Names of GPUs, as users and providers write them: vendor, model, memory and form factor, compared by tokens.

Pure, but for the table in gpus.json, which is read once. Names that it does not explain are compared literally.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from services.kit.errors import InvalidArgument
from services.planner.domain import Offer

TABLE = Path(__file__).with_name("gpus.json")
LONGEST_NAME = 128
# Catalogs of thousands of offers repeat a few names.
REMEMBERED = 2048
# The same card is sold as 141 and as 143 GB. No two sizes of one card are nearer to each other than this.
SAME_MEMORY = 0.03

VENDORS = {"nvidia": "NVIDIA", "amd": "AMD"}
# Words that come with names and tell no two cards apart.
NOISE = {"gpu", "geforce", "tesla", "quadro", "instinct", "generation", "edition", "blackwell", "ac"}
FORMS = {
    "pcie": "PCIE", "nvl": "NVL", "fhhl": "FHHL", "oam": "OAM",
    "server": "SERVER", "workstation": "WORKSTATION", "wk": "WORKSTATION", "maxq": "MAXQ",
}  # fmt: skip
# One card that is called both is the first.
NARROWER = [("MAXQ", "WORKSTATION"), ("NVL", "PCIE"), ("FHHL", "PCIE")]

_SXM = re.compile(r"sxm\d?(?:gdr)?")
_MEMORY = re.compile(r"(\d{1,4})(?:gb?|gib)")
_COUNT = re.compile(r"\d{1,2}x")
_SLICE = re.compile(r"\dg")
# Names that are written in one piece: RTX4000AdaSFF, H100NVL, 3080TI.
_GLUED = [
    re.compile(r"(rtx)(pro)?(a?\d{4})(ada)?(sff|ti|super|maxq|wk)?"),
    re.compile(r"([a-z]{1,2}\d{2,3}[sx]?)(nvl|pcie|sxm\d?)"),
    re.compile(r"(\d{4})(ti|super)"),
]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, or, where something is None, every GPU that fits."""

    model: str
    """As in gpus.json; of an unknown GPU the name as it was written."""
    vendor: str = ""
    """Empty: unknown GPU."""
    memory_gb: int | None = None
    form: str | None = None
    """SXM, PCIE, NVL, FHHL, OAM; of the RTX PRO series SERVER, WORKSTATION, MAXQ."""

    @property
    def known(self) -> bool:
        return bool(self.vendor)


@dataclass(frozen=True)
class Ambiguous:
    """A name that fits cards with different memory. It is neither True nor False, counts as False, and its text asks."""

    wanted: str
    choices: tuple[str, ...]

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"'{self.wanted}' comes with different amounts of memory: say {' or '.join(self.choices)}"


@lru_cache(REMEMBERED)
def parse(text: str) -> Gpu:
    """What somebody wants. Says no more than the text: `H100` has neither memory nor form. Never fails."""
    text = " ".join(text.split())
    if text.casefold() in _table().instance_types:  # names of whole machines mean one kind of GPU
        return offered(text)
    tokens = _tokens(text)
    words = {token for token in tokens if token not in VENDORS and token not in NOISE}
    alias = _table().aliases.get(frozenset(words))
    gpu = alias or _described(words)
    vendors = {VENDORS[token] for token in tokens if token in VENDORS}
    return gpu if gpu is not None and vendors <= {gpu.vendor} else Gpu(model=text)


@lru_cache(REMEMBERED)
def offered(text: str) -> Gpu:
    """What a provider, or `canonical`, calls `text`. As precise as the table allows: RunPod's `NVIDIA H200` is the SXM card."""
    text = " ".join(text.split())
    name = _table().ids.get(text.casefold())
    gpu = parse(text) if name is None else parse(name)
    cards = [card for card in _table().cards.get(gpu.model, ()) if _fits(gpu, card)]
    forms, sizes = {card.form for card in cards}, {card.memory_gb for card in cards}
    if gpu.form is None and len(forms) == 1:
        gpu = replace(gpu, form=forms.pop())
    if gpu.memory_gb is None and len(sizes) == 1:
        gpu = replace(gpu, memory_gb=sizes.pop())
    return gpu


def canonical(gpu: Gpu) -> str:
    """Such as `H100-SXM-80GB`; the form stands there only where the model has several. `offered` reads it back."""
    known = {card.form for card in _table().cards.get(gpu.model, ())}
    form = gpu.form if gpu.form and known != {gpu.form} else None
    memory = f"{gpu.memory_gb}GB" if gpu.memory_gb else None
    return "-".join(part for part in (gpu.model, form, memory) if part)


def matches(wanted: str, offer: Offer | Gpu | str) -> bool | Ambiguous:
    """Whether `offer` (a string: a provider's name for it) is what `wanted` says. Ambiguous, where a user has to say more."""
    if isinstance(offer, Offer):
        if _same(wanted, offer.instance_type) or _same(wanted, offer.accelerator):
            return True
        there = offered(offer.accelerator)
        if there.memory_gb is None and offer.memory_gb:
            there = replace(there, memory_gb=offer.memory_gb)
    else:
        there = offered(offer) if isinstance(offer, str) else offer
    want = parse(wanted)
    if not (want.known and there.known):
        return _same(wanted, canonical(there) if isinstance(offer, Gpu) else there.model)
    if not _fits(want, there):
        return False
    choices = _choices(want)
    return Ambiguous(wanted[:LONGEST_NAME], choices) if choices else True


def check(text: str, *, param: str, min_memory_gb: int = 0) -> Gpu:
    """What `parse` says of a name that a user gave. With a least memory, whichever card is meant will do.

    Error: InvalidArgument, with `choices` in its context if the name fits cards with different memory.
    """
    if not text.strip() or len(text) > LONGEST_NAME or not text.isprintable():
        message = f"Invalid value for '{param}': a GPU's name has 1 to {LONGEST_NAME} printable characters."
        raise InvalidArgument(message, param=param, code="invalid_value")
    gpu = parse(text)
    if not min_memory_gb and (choices := _choices(gpu)):
        message = f"Invalid value for '{param}': {Ambiguous(text, choices)}."
        raise InvalidArgument(message, param=param, code="invalid_value", choices=", ".join(choices))
    return gpu


# --- Reading ----------------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[str]:
    """Lower-case words; memory is one word, as in `80gb`."""
    text = re.sub(r"\bmax[ _-]q\b", "maxq", text.casefold())
    text = re.sub(r"\b(\d{1,4}) (gb|gib)\b", r"\1\2", text)
    tokens: list[str] = []
    for word in re.findall(r"[^\W_]+", text):
        found = next((match for glued in _GLUED if (match := glued.fullmatch(word))), None)
        tokens.extend(part for part in found.groups() if part) if found else tokens.append(word)
    return tokens


def _described(words: Iterable[str]) -> Gpu | None:
    """The GPU that these words say. None if one of them is not understood: a part of a name is another name."""
    forms: set[str] = set()
    sizes: set[int] = set()
    model: set[str] = set()
    sliced = "mig" in (words := list(words))
    for word in words:
        if _COUNT.fullmatch(word) or (sliced and _SLICE.fullmatch(word)):
            continue
        if memory := _MEMORY.fullmatch(word):
            sizes.add(int(memory[1]))
        elif word in FORMS or _SXM.fullmatch(word):
            forms.add(FORMS.get(word, "SXM"))
        else:
            model.add(word)
    for narrow, wide in NARROWER:
        if narrow in forms:
            forms.discard(wide)
    name = _table().models.get(frozenset(model))
    if name is None or len(forms) > 1 or len(sizes) > 1:
        return None
    vendor = _table().cards[name][0].vendor
    return Gpu(vendor=vendor, model=name, memory_gb=next(iter(sizes), None), form=next(iter(forms), None))


def _fits(want: Gpu, there: Gpu) -> bool:
    """Whether what `want` says is true of `there`. What is not known of `there` is not what was wanted."""
    if (want.vendor, want.model) != (there.vendor, there.model):
        return False
    if want.form is not None and want.form != there.form:
        return False
    if want.memory_gb is None:
        return True
    return there.memory_gb is not None and _near(want.memory_gb, there.memory_gb)


def _near(a: int, b: int) -> bool:
    return abs(a - b) <= SAME_MEMORY * max(a, b)


def _choices(want: Gpu) -> tuple[str, ...]:
    """The names to choose from, if some form of it comes with different memory; else none."""
    cards = [card for card in _table().cards.get(want.model, ()) if _fits(want, card)]
    per_form = [len({card.memory_gb for card in cards if card.form == form}) for form in {card.form for card in cards}]
    if max(per_form, default=0) < 2:
        return ()
    sizes = sorted({card.memory_gb for card in cards if card.memory_gb})
    return tuple(canonical(replace(want, memory_gb=size)) for size in sizes)


def _same(a: str, b: str) -> bool:
    return bool(a.strip()) and a.casefold().split() == b.casefold().split()


# --- The table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    cards: dict[str, tuple[Gpu, ...]]
    """By model."""
    models: dict[frozenset[str], str]
    aliases: dict[frozenset[str], Gpu]
    ids: dict[str, str]
    """Providers' names, lower case, to canonical names."""
    instance_types: frozenset[str]
    """Those of them that name a whole machine."""


@cache
def _table() -> _Table:
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    cards = {
        model: tuple(Gpu(model=model, vendor=vendor, form=form, memory_gb=memory) for form, memory in rows)
        for vendor, models in content["cards"].items()
        for model, rows in models.items()
    }
    aliases = {
        frozenset(_tokens(alias)): Gpu(**{**row, "vendor": cards[row["model"]][0].vendor})
        for alias, row in content["aliases"].items()
    }
    models = {frozenset(_tokens(model)): model for model in cards}
    machines = {name.casefold(): gpu for name, gpu in content["ids"]["lambda"].items()}
    gpus = {name.casefold(): gpu for name, gpu in content["ids"]["runpod"].items()}
    return _Table(cards, models, aliases, gpus | machines, frozenset(machines))
