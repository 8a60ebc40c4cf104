"""Names of GPUs: every name that providers use, what users write, and what must not be taken for something else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument
from services.planner.domain import Offer
from services.planner.resource_manager.gpus import TABLE, Ambiguous, Gpu, canonical, check, matches, offered, parse
from tests.planner.openapi import SPECS

ROWS: list[dict[str, Any]] = json.loads((SPECS / "gpu-types.json").read_text())["gpus"]
IDS = [row["id"] for row in ROWS]
CARDS = {
    canonical(Gpu(vendor=vendor, model=model, form=form, memory_gb=memory))
    for vendor, models in json.loads(TABLE.read_text())["cards"].items()
    for model, cards in models.items()
    for form, memory in cards
}
# In the enum of the retired API, and in no other place: nobody knows which cards these are.
JUNK = {"NVIDIA A5000 Ada", "NVIDIA RTX A30"}
MEMORY = {
    "Tesla V100-FHHL-16GB": 16,
    "Tesla V100-PCIE-32GB": 32,
    "NVIDIA  RTX A4500": 20,
    "NVIDIA  A30": 24,
    "NVIDIA GeForce RTX 3080TI": 12,
    "Tesla T4": 16,
}


def glued(name: str) -> str:
    """As one of the other schedulers writes models: without anything between the words, and some without the series."""
    return re.sub(r"[^A-Z0-9]", "", name.upper()).replace("RTXA", "A")


def form_in(row: dict[str, Any]) -> str | None:
    """The form factor that a row names anywhere, read from its text in another way than the code under test does."""
    text = " ".join(str(row.get(name) or "") for name in ("id", "display", "skypilot", "gpuhunt")).upper()
    text = text.replace("-", "").replace("_", "")
    for word, form in {
        "MAXQ": "MAXQ", "WORKSTATION": "WORKSTATION", "SERVER": "SERVER", "SXM": "SXM", "NVL": "NVL", "OAM": "OAM",
        "FHHL": "FHHL", "PCIE": "PCIE",
    }.items():  # fmt: skip
        if word in text:
            return form
    return None


def test_there_are_76() -> None:
    assert len(ROWS) == 76


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_every_name_of_both_providers_is_read(row: dict[str, Any]) -> None:
    gpu = offered(row["id"])
    assert gpu.known is (row["id"] not in JUNK)
    assert matches(row["id"], row["id"]) is True
    if not gpu.known:
        return
    assert gpu.memory_gb == (row["vram_gb"] or MEMORY[row["id"]])
    if row.get("gpuhunt"):
        other = glued(row["gpuhunt"]).replace("NVL", "").replace("MAXQ", "").replace("WK", "")
        # Words of a model have an order in one scheme, none in the other.
        assert sorted(glued(gpu.model)) == sorted(other)
    if form_in(row) is not None:
        assert gpu.form == form_in(row)
    assert gpu.vendor == ("AMD" if row["id"].startswith("AMD") else "NVIDIA")


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_canonical_name_is_read_back(row: dict[str, Any]) -> None:
    gpu = offered(row["id"])
    assert offered(canonical(gpu)) == gpu
    assert matches(canonical(gpu), gpu) is True
    assert matches(canonical(gpu), row["id"]) is True


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("display")], ids=lambda row: str(row["display"]))
def test_what_a_provider_shows_is_what_it_offers(row: dict[str, Any]) -> None:
    """Or it has to be asked which of several sizes is meant."""
    assert matches(row["display"], row["id"]) is not False


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H100", "H100"),
        ("NVIDIA H100", "H100"),
        ("nvidia-h100", "H100"),
        ("H100-SXM", "H100-SXM"),
        ("H100-SXM5", "H100-SXM"),
        ("H100_SXM5_80GB", "H100-SXM-80GB"),
        ("nvidia h100 80gb hbm3", "H100-SXM-80GB"),
        ("H100 PCIe", "H100-PCIE"),
        ("H100NVL", "H100-NVL"),
        ("H100 (80 GB SXM5)", "H100-SXM-80GB"),
        ("8x H100 (80 GB SXM5)", "H100-SXM-80GB"),
        ("gpu_8x_h100_sxm5gdr", "H100-SXM"),
        ("A100", "A100"),
        ("A100-40GB", "A100-40GB"),
        ("A100 80 GB", "A100-80GB"),
        ("a100-80g", "A100-80GB"),
        ("A100-SXM4-80GB", "A100-SXM-80GB"),
        ("gpu_8x_a100_80gb_sxm4", "A100-SXM-80GB"),
        ("gpu_1x_a100", "A100-40GB"),
        ("gpu_8x_v100_n", "V100-16GB"),
        ("A10", "A10"),
        ("A10 (24 GB PCIe)", "A10-24GB"),
        ("RTX A6000", "RTX-A6000"),
        ("A6000", "RTX-A6000"),
        ("RTXA6000", "RTX-A6000"),
        ("RTX 6000", "RTX-6000"),
        ("Quadro RTX 6000", "RTX-6000"),
        ("RTX 6000 Ada", "RTX-6000-ADA"),
        ("RTX6000Ada", "RTX-6000-ADA"),
        ("RTX PRO 6000", "RTX-PRO-6000"),
        ("RTXPRO6000MaxQ", "RTX-PRO-6000-MAXQ"),
        ("RTX 3080TI", "RTX-3080-TI"),
        ("GeForce RTX 4090", "RTX-4090"),
        ("L40S", "L40S"),
        ("MI300X", "MI300X"),
        ("AMD MI300X", "MI300X"),
        ("GH200 (96 GB)", "GH200-96GB"),
        ("  H100 \t SXM ", "H100-SXM"),
    ],
)
def test_what_users_write(text: str, name: str) -> None:
    gpu = parse(text)
    assert gpu.known
    assert canonical(gpu) == name


@pytest.mark.parametrize(
    "text",
    ["", "gpu", "NVIDIA", "H", "H1000", "XH100", "H100X", "A1000", "H100 Ultra", "AMD H100", "NVIDIA MI300X", "A100-80",
     "H100 SXM PCIe", "A100 40GB 80GB", "RTX 4090 D", "RTX 9090", "100", "80GB", "SXM", "H100/A100", "\uff28100", "H100²"],
)  # fmt: skip
def test_a_name_that_is_only_partly_understood_is_another_name(text: str) -> None:
    gpu = parse(text)
    assert not gpu.known
    assert gpu.model == text
    assert [id for id in IDS if matches(text, id) is not False] == []


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        ("A10", "NVIDIA A100 80GB PCIe"),
        ("A10", "gpu_1x_a100"),
        ("A100", "gpu_1x_a10"),
        ("L4", "NVIDIA L40"),
        ("L40", "NVIDIA L40S"),
        ("L40S", "NVIDIA L40"),
        ("A40", "NVIDIA RTX A4000"),
        ("H100", "NVIDIA H200"),
        ("H100", "gpu_1x_gh200"),
        ("H100-SXM", "NVIDIA H100 PCIe"),
        ("H100-SXM", "NVIDIA H100 NVL"),
        ("H100-94GB", "NVIDIA H100 80GB HBM3"),
        ("A100-80GB", "gpu_1x_a100"),
        ("A100-40GB", "NVIDIA A100-SXM4-80GB"),
        # It is not known to be one.
        ("A100-SXM-40GB", "gpu_1x_a100"),
        ("RTX 6000", "NVIDIA RTX 6000 Ada Generation"),
        ("RTX 6000", "NVIDIA RTX A6000"),
        ("RTX 6000 Ada", "gpu_1x_rtx6000"),
        ("RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 1g.24gb"),
        ("RTX PRO 6000 Workstation", "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"),
        ("RTX 3080", "NVIDIA GeForce RTX 3080 Ti"),
        ("RTX 4000 Ada", "NVIDIA RTX 4000 SFF Ada Generation"),
        ("RTX 4080 SUPER", "NVIDIA GeForce RTX 4080"),
        ("", "NVIDIA H100 PCIe"),
        ("", ""),
    ],
)
def test_what_is_not_wanted(wanted: str, there: str) -> None:
    assert matches(wanted, there) is False


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        ("H100", {"NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "gpu_1x_h100_pcie", "gpu_1x_h100_sxm5",
                  "gpu_2x_h100_sxm5", "gpu_4x_h100_sxm5", "gpu_8x_h100_sxm5"}),
        ("H100-SXM", {"NVIDIA H100 80GB HBM3", "gpu_1x_h100_sxm5", "gpu_2x_h100_sxm5", "gpu_4x_h100_sxm5",
                      "gpu_8x_h100_sxm5"}),
        ("H100-80GB", {"NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "gpu_1x_h100_pcie", "gpu_1x_h100_sxm5",
                       "gpu_2x_h100_sxm5", "gpu_4x_h100_sxm5", "gpu_8x_h100_sxm5"}),
        ("A100-40GB", {"gpu_1x_a100", "gpu_1x_a100_sxm4", "gpu_2x_a100", "gpu_4x_a100", "gpu_8x_a100"}),
        ("A100-SXM-80GB", {"NVIDIA A100-SXM4-80GB", "gpu_8x_a100_80gb_sxm4"}),
        ("H200-141GB", {"NVIDIA H200", "NVIDIA H200 NVL"}),
        ("A10", {"gpu_1x_a10"}),
        ("A30", {"NVIDIA A30", "NVIDIA  A30"}),
        ("B200-SXM", {"NVIDIA B200", "gpu_1x_b200_sxm6", "gpu_2x_b200_sxm6", "gpu_4x_b200_sxm6", "gpu_8x_b200_sxm6"}),
        ("RTX PRO 6000", {"NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
                          "NVIDIA RTX PRO 6000 Blackwell Server Edition",
                          "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"}),
        ("NVIDIA RTX A30", {"NVIDIA RTX A30"}),
    ],
)  # fmt: skip
def test_what_a_name_takes_of_everything(wanted: str, there: set[str]) -> None:
    assert {id for id in IDS if matches(wanted, id) is True} == there


@pytest.mark.parametrize(
    ("wanted", "choices"),
    [
        ("A100", ("A100-40GB", "A100-80GB")),
        ("NVIDIA A100", ("A100-40GB", "A100-80GB")),
        ("A100-SXM4", ("A100-SXM-40GB", "A100-SXM-80GB")),
        ("A100 PCIe", ("A100-PCIE-40GB", "A100-PCIE-80GB")),
        ("V100", ("V100-16GB", "V100-32GB")),
        ("Tesla V100", ("V100-16GB", "V100-32GB")),
        ("RTX PRO 6000 MIG", ("RTX-PRO-6000-MIG-24GB", "RTX-PRO-6000-MIG-48GB")),
    ],
)
def test_an_unclear_name_is_asked_about(wanted: str, choices: tuple[str, ...]) -> None:
    there = [id for id in IDS if matches(wanted, id) is not False]
    assert there
    for id in there:
        answer = matches(wanted, id)
        assert answer == Ambiguous(wanted, choices)
        assert answer is not True
        assert not answer
        assert str(answer) == f"'{wanted}' comes with different amounts of memory: say {' or '.join(choices)}"
    with pytest.raises(InvalidArgument) as failure:
        check(wanted, param="spec.accelerator.type")
    assert failure.value.context == {
        "param": "spec.accelerator.type",
        "code": "invalid_value",
        "choices": ", ".join(choices),
    }
    assert all(choice in failure.value.message for choice in choices)
    assert check(wanted, param="p", min_memory_gb=16) == parse(wanted)
    for choice in choices:
        assert check(choice, param="p").known
    for id in there:
        assert [matches(choice, id) for choice in choices].count(True) == 1


@pytest.mark.parametrize("text", ["H100", "V100-FHHL", "a card of tomorrow", "A100-60GB", "H200"])
def test_a_clear_name_is_not_asked_about(text: str) -> None:
    assert check(text, param="p") == parse(text)


@pytest.mark.parametrize("text", ["", "  ", "x" * 129, "H100\n", "H100\x00"])
def test_a_name_that_cannot_be_one_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as failure:
        check(text, param="spec.accelerator.type")
    assert failure.value.context == {"param": "spec.accelerator.type", "code": "invalid_value"}
    assert len(failure.value.message) < 200


def an_offer(**fields: Any) -> Offer:
    return Offer(**({"provider": "p", "instance_type": "t"} | fields))


@pytest.mark.parametrize(
    ("wanted", "offer", "fits"),
    [
        ("H100", an_offer(accelerator="H100-SXM-80GB"), True),
        ("H100", an_offer(accelerator="NVIDIA H100 80GB HBM3"), True),
        ("H100-80GB", an_offer(accelerator="H100", memory_gb=80), True),
        ("H100-80GB", an_offer(accelerator="H100-NVL"), False),
        ("A100-80GB", an_offer(accelerator="A100", memory_gb=40), False),
        # What an operator calls it himself is meant, whatever it is.
        ("A100", an_offer(accelerator="A100"), True),
        ("big-gpu", an_offer(accelerator="BIG-GPU"), True),
        ("big-gpu", an_offer(accelerator="big-gpu-2"), False),
        ("NVIDIA H900  Ultra", an_offer(instance_type="NVIDIA H900 Ultra", accelerator="NVIDIA H900 Ultra"), True),
        ("gpu_1x_x900", an_offer(instance_type="gpu_1x_x900", accelerator="H100-SXM-80GB"), True),
        ("H100", an_offer(accelerator=""), False),
    ],
)
def test_offers(wanted: str, offer: Offer, fits: bool) -> None:
    assert matches(wanted, offer) is fits


WORDS = st.sampled_from(
    ["H100", "A100", "A10", "L40S", "RTX", "6000", "A6000", "Ada", "PRO", "NVIDIA", "AMD", "SXM", "SXM5", "PCIe", "NVL",
     "80GB", "40", "GB", "24 GB", "8x", "MIG", "1g.24gb", "Max-Q", "gpu", "Ti", "HBM3", "_", "(", "V100", "x"]
)  # fmt: skip
NAMES = st.one_of(st.text(max_size=40), st.lists(WORDS, max_size=6).map(" ".join), st.sampled_from(IDS))


@given(NAMES)
def test_any_text_is_read_without_an_error_and_the_same_in_any_case(text: str) -> None:
    gpu = parse(text)
    assert offered(canonical(offered(text))) == offered(text)
    if gpu.known and text.isascii():
        assert parse(text.upper()) == gpu
        assert parse(text.lower().replace(" ", "-")) == gpu
    assert gpu.known or matches(text, text) is bool(text.strip())


@given(NAMES, st.sampled_from(IDS))
def test_what_is_matched_is_the_same_card(wanted: str, id: str) -> None:
    answer, want, there = matches(wanted, id), parse(wanted), offered(id)
    if answer is False:
        return
    assert (want.vendor, want.model) == (there.vendor, there.model)
    assert want.form in (None, there.form)
    if want.memory_gb is not None:
        assert there.memory_gb is not None
        assert abs(want.memory_gb - there.memory_gb) <= 0.03 * there.memory_gb
    # To say more of the same card never makes a match of what was none, and removes all doubt.
    assert matches(canonical(there), id) is True


@given(st.sampled_from(sorted(CARDS)), st.sampled_from(sorted(CARDS)))
def test_two_cards_are_the_same_only_if_they_are(one: str, other: str) -> None:
    near = {"H200-SXM-141GB", "H200-NVL-143GB"}
    assert (matches(one, offered(other)) is True) is (one == other)
    if one != other and not {one, other} <= near:
        memory_only = re.sub(r"-(SXM|PCIE|NVL|FHHL|SERVER|WORKSTATION|MAXQ)(?=-)", "", one)
        assert (matches(memory_only, offered(other)) is True) is (
            memory_only == re.sub(r"-(SXM|PCIE|NVL|FHHL|SERVER|WORKSTATION|MAXQ)(?=-)", "", other)
        )


def test_the_table_goes_into_the_wheel() -> None:
    root = Path(__file__).parents[2]
    files = {file.distribution_path for file in WheelBuilder(str(root)).recurse_included_files()}
    assert str(TABLE.relative_to(root)) in files
