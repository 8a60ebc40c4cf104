"""Which offer is taken: pure, without database or cloud."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.domain import Offer, ProvisionSpec
from services.planner.resource_manager.choice import Choice, Refusal
from services.planner.resource_manager.gpus import matches
from services.planner.resource_manager.static import Static
from tests.metadata.conftest import Clock
from tests.planner.resources import Cloud, Fake, gpus, match


def offer(name: str, accelerator: str = "H100-SXM-80GB", price: float = 1.0, **fields: Any) -> Offer:
    given = {"provider": "one", "region": "north", "gpus": 1, "memory_gb": 80}
    return Offer(instance_type=name, accelerator=accelerator, hourly_price_usd=price, **given | fields)


def choose(spec: ProvisionSpec, *offers: Offer, refused: tuple[Refusal, ...] = ()) -> Offer | Refusal:
    cloud = Cloud(Clock())
    providers = {name: Fake(cloud, name=name) for name in ("one", "two", "three")}
    return Choice(spec, providers, match).choose(offers, refused)


def chosen(spec: ProvisionSpec, *offers: Offer, **more: Any) -> str:
    found = choose(spec, *offers, **more)
    assert isinstance(found, Offer), found
    return found.instance_type


def refused(spec: ProvisionSpec, *offers: Offer, **more: Any) -> Refusal:
    found = choose(spec, *offers, **more)
    assert isinstance(found, Refusal), found
    return found


def no(of: Offer, code: str = "NoCapacity", *, retryable: bool = True, whole: bool = False) -> Refusal:
    return Refusal(
        provider=of.provider,
        region=of.region,
        instance_type=None if whole else of.instance_type,
        code=code,
        message=f"no {of.instance_type}",
        retryable=retryable,
    )


CHEAP, DEAR = offer("cheap", price=1.0), offer("dear", price=2.0, provider="two")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (gpus("H100"), "cheap"),
        (gpus("H100", providers=["two", "one"]), "dear"),
        (gpus("H100", providers=["two"]), "dear"),
        (gpus("H100", providers=["three", "two"]), "dear"),
    ],
)
def test_providers_in_the_order_of_preference_else_the_cheapest(spec: ProvisionSpec, expected: str) -> None:
    assert chosen(spec, DEAR, CHEAP) == expected


def test_accelerators_and_regions_in_the_order_of_preference_before_the_price() -> None:
    h200 = offer("h200", "H200-SXM-141GB", 9.0, memory_gb=141, region="south")
    south = replace(CHEAP, instance_type="south", region="south", hourly_price_usd=5.0)
    assert chosen(gpus("H200", "H100"), CHEAP, h200) == "h200"
    assert chosen(gpus("H100", "H200"), CHEAP, h200) == "cheap"
    assert chosen(gpus("H100", regions=["south", "north"]), CHEAP, south) == "south"
    assert chosen(gpus("H100", "H200", regions=["south"]), CHEAP, h200) == "h200"


def test_only_what_suits() -> None:
    eight = replace(CHEAP, instance_type="eight", gpus=8)
    cpu = offer("cpu", "", 0.1, gpus=0, memory_gb=0)
    assert chosen(gpus("H100", count=8), CHEAP, eight, cpu) == "eight"
    assert chosen(ProvisionSpec(), CHEAP, cpu) == "cpu"
    assert refused(ProvisionSpec(), CHEAP).code == "NoCapacity"
    assert refused(gpus("H100", count=2), CHEAP, eight).message == "one, two, three: no offer of 2 x H100"
    assert refused(gpus("H200"), CHEAP).code == "NoGpuType"
    assert not refused(gpus("H200"), CHEAP).retryable


def test_a_region_that_a_cloud_does_not_name_is_no_region_that_was_asked_for() -> None:
    anywhere = replace(CHEAP, region="")
    assert chosen(gpus("H100"), anywhere) == "cheap"
    found = refused(gpus("H100", regions=["south"]), anywhere)
    assert (found.code, found.retryable) == ("NoCapacity", True)
    assert not refused(gpus("H100", regions=["south"]), CHEAP).retryable


def test_the_highest_price() -> None:
    assert chosen(gpus("H100", max_hourly_price_usd=1.0), CHEAP, DEAR) == "cheap"
    found = refused(gpus("H100", max_hourly_price_usd=0.5), CHEAP, DEAR)
    assert (found.code, found.retryable) == ("NoCapacity", False)
    assert found.message == "one, two, three: no offer of 1 x H100 for at most 0.5 USD an hour"


def test_what_is_not_available_now_may_be_later() -> None:
    gone = replace(CHEAP, available=False)
    assert chosen(gpus("H100"), gone, DEAR) == "dear"
    found = refused(gpus("H100"), gone)
    assert (found.code, found.retryable) == ("NoCapacity", True)


def test_an_ambiguous_name_is_asked_about_and_never_guessed() -> None:
    small, large = offer("a40", "A100-40GB", 1.0, memory_gb=40), offer("a80", "A100-80GB", 2.0)
    found = refused(gpus("A100"), small, large, CHEAP)
    assert (found.code, found.retryable) == ("NoGpuType", False)
    assert found.message == "A100 may be A100-40GB or A100-80GB: say which"
    assert refused(gpus("A100", "H100"), large, CHEAP).code == "NoGpuType"
    assert chosen(gpus("A100-80GB"), small, large) == "a80"
    assert chosen(gpus("A100", memory=80), small, large) == "a80"
    assert chosen(gpus("A100", memory=20), small, large) == "a40"


def test_the_names_of_the_table() -> None:
    """With the comparison that is used in earnest."""
    cloud = Cloud(Clock())
    offers = [offer("sxm"), offer("pcie", "H100-PCIE-80GB", 0.5), offer("h200", "H200-SXM-141GB", memory_gb=141)]
    for wanted, expected in [
        ("NVIDIA H100 80GB HBM3", "sxm"),
        ("h100", "pcie"),
        ("H100-SXM5", "sxm"),
        ("NVIDIA H200", "h200"),
    ]:
        found = Choice(gpus(wanted), {"one": Fake(cloud)}, matches).choose(offers, ())
        assert isinstance(found, Offer)
        assert found.instance_type == expected
    assert isinstance(
        Choice(gpus("A10"), {"one": Fake(cloud)}, matches).choose([offer("a", "A100-40GB", memory_gb=40)], ()), Refusal
    )


def test_memory_is_not_compared_to_the_last_gigabyte() -> None:
    assert chosen(gpus("H200", memory=143), offer("h200", "H200-SXM-141GB", memory_gb=141)) == "h200"
    assert refused(gpus("H100", memory=96), CHEAP).code == "NoGpuType"


def test_refusals_are_remembered_and_told() -> None:
    other = replace(CHEAP, instance_type="other", hourly_price_usd=3.0)
    assert chosen(gpus("H100"), CHEAP, DEAR, refused=(no(CHEAP),)) == "dear"
    assert chosen(gpus("H100"), CHEAP, other, DEAR, refused=(no(CHEAP, whole=True),)) == "dear"
    found = refused(gpus("H100"), CHEAP, DEAR, refused=(no(CHEAP), no(DEAR)))
    assert (found.code, found.retryable, found.message) == ("NoCapacity", True, "one: no cheap; two: no dear")


WRONG = {
    code: no(DEAR, code, retryable=False, whole=True)
    for code in ("InvalidCredential", "QuotaExceeded", "InvalidRequest")
}


@pytest.mark.parametrize("code", WRONG)
def test_what_can_be_waited_for_is_told_before_what_cannot(code: str) -> None:
    """A job whose one cloud has no capacity now, and whose other cloud is set up wrongly, waits for the first."""
    found = refused(gpus("H100"), CHEAP, DEAR, refused=(WRONG[code], no(CHEAP)))
    assert (found.code, found.retryable, found.message) == ("NoCapacity", True, "one: no cheap; two: no dear")
    alone = refused(gpus("H100", providers=["two"]), CHEAP, DEAR, refused=(WRONG[code],))
    assert (alone.code, alone.retryable, alone.message) == (code, False, "two: no dear")
    later = refused(gpus("H100"), replace(CHEAP, available=False), DEAR, refused=(WRONG[code],))
    assert (later.code, later.retryable) == ("NoCapacity", True)
    assert later.message == "one, three: no offer of 1 x H100 now; two: no dear"
    never = refused(gpus("H100"), refused=(WRONG[code],))
    assert (never.code, never.retryable) == (code, False)
    assert never.message == "two: no dear; one, three: no offer of 1 x H100"


def test_of_several_permanent_reasons_what_somebody_can_mend_is_told_first() -> None:
    card, request = (no(CHEAP, code) for code in ("NoGpuType", "InvalidRequest"))
    key = no(DEAR, "InvalidCredential", retryable=False, whole=True)
    found = refused(gpus("H100"), CHEAP, DEAR, refused=(card, request, key))
    assert (found.code, found.retryable, found.message) == ("InvalidCredential", False, "two: no dear; one: no cheap")
    # Each of the candidates was refused for a wrong request, so the request is wrong: it is not tried again.
    found = refused(gpus("H100"), CHEAP, refused=(card, request))
    assert (found.code, found.retryable) == ("InvalidRequest", False)
    assert not refused(gpus("H100"), CHEAP, refused=(card,)).retryable


def test_of_equal_offers_the_first_is_taken() -> None:
    """A catalog's order means something: the operator's own order of data centers, for one."""
    places = [replace(CHEAP, region=name) for name in ("b", "c", "a")]
    for _ in range(3):
        places = [*places[1:], places[0]]
        assert choose(gpus("H100"), *places) == places[0]
    assert choose(gpus("H100"), replace(DEAR, hourly_price_usd=1.0), CHEAP) == replace(DEAR, hourly_price_usd=1.0)


@pytest.mark.parametrize("code", ["NoCapacity", "NoGpuType"])
def test_what_a_cloud_has_nowhere_is_not_asked_for_place_by_place(code: str) -> None:
    anywhere = replace(CHEAP, region="")
    places = [replace(CHEAP, region=name) for name in ("a", "b")]
    other = replace(CHEAP, instance_type="other", hourly_price_usd=3.0)
    assert chosen(gpus("H100"), anywhere, *places, other, refused=(no(anywhere, code),)) == "other"
    found = refused(gpus("H100"), anywhere, *places, refused=(no(anywhere, code),))
    assert found.code == code
    # One place that has none says nothing of the others, nor of a cloud that may choose.
    assert choose(gpus("H100"), *places, refused=(no(places[0], code),)) == places[1]
    assert choose(gpus("H100"), places[0], anywhere, refused=(no(places[0], code),)) == anywhere
    assert choose(gpus("H100"), replace(places[0], provider="two"), refused=(no(anywhere, code),)) != anywhere
    # Another reason may be one of the place.
    assert choose(gpus("H100"), anywhere, *places, refused=(no(anywhere, "ProviderUnavailable"),)) == places[0]


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1.0])
def test_a_price_that_is_none_wins_no_comparison(price: float) -> None:
    assert chosen(gpus("H100"), replace(DEAR, hourly_price_usd=price), CHEAP) == "cheap"
    assert refused(gpus("H100"), replace(DEAR, hourly_price_usd=price)).code == "NoGpuType"


def test_labels_are_of_endpoints_and_said_in_the_message(make_settings: Any) -> None:
    endpoints = [
        {"name": "a", "base_url": "http://a", "labels": {"team": "x"}, "hourly_price_usd": 2.0},
        {"name": "b", "base_url": "http://b", "labels": {"team": "x", "gpu": "big"}, "hourly_price_usd": 3.0},
        {"name": "c", "base_url": "http://c", "accelerator": "L4", "region": "north", "hourly_price_usd": 4.0},
    ]
    static = Static(make_settings(static={"endpoints": endpoints}))
    offers = [
        Offer(provider="static", instance_type="a", hourly_price_usd=2.0),
        Offer(provider="static", instance_type="b", hourly_price_usd=3.0),
        Offer(provider="static", instance_type="c", hourly_price_usd=4.0, accelerator="L4", region="north"),
    ]

    def take(spec: ProvisionSpec) -> Offer | Refusal:
        return Choice(spec, {"static": static}, match).choose(offers, ())

    def name(spec: ProvisionSpec) -> str:
        found = take(spec)
        assert isinstance(found, Offer), found
        return found.instance_type

    assert name(ProvisionSpec()) == "a"
    assert name(gpus("H100", labels={"team": "x"})) == "a"
    assert name(gpus("H100", labels={"gpu": "big"}, regions=["mars"])) == "b"
    assert name(gpus("L4", regions=["north"], max_hourly_price_usd=5)) == "c"
    assert name(gpus("L4", "H100")) == "a"
    missing = take(ProvisionSpec(labels={"team": "y"}))
    assert isinstance(missing, Refusal)
    assert missing.message == "static: no offer of a CPU machine with the labels team=y"


@given(
    st.lists(
        st.builds(
            offer,
            st.sampled_from("abc"),
            st.sampled_from(["H100-SXM-80GB", "H200-SXM-141GB", "L4"]),
            st.floats(0, 10),
            provider=st.sampled_from(["one", "two", "three"]),
            region=st.sampled_from(["north", "south", ""]),
            available=st.booleans(),
            gpus=st.sampled_from([1, 2]),
        ),
        max_size=12,
    ),
    st.lists(st.sampled_from(["one", "two", "three"]), unique=True, max_size=3),
    st.lists(st.sampled_from(["north", "south"]), unique=True, max_size=2),
    st.none() | st.floats(0, 10),
    st.data(),
)
def test_what_is_chosen_keeps_to_the_spec(
    offers: list[Offer], providers: list[str], regions: list[str], most: float | None, data: st.DataObject
) -> None:
    spec = gpus("H100", "L4", providers=providers, regions=regions, max_hourly_price_usd=most)
    before = (
        tuple(no(one) for one in data.draw(st.lists(st.sampled_from(offers), max_size=3)) if offers) if offers else ()
    )
    found = choose(spec, *offers, refused=before)

    def allowed(one: Offer) -> bool:
        return (
            one.available
            and one.gpus == 1
            and one.accelerator in ("H100-SXM-80GB", "L4")
            and (not providers or one.provider in providers)
            and (not regions or one.region in regions)
            and (most is None or one.hourly_price_usd <= most)
            and not any(refusal.covers(one) for refusal in before)
        )

    left = [one for one in offers if allowed(one)]
    if isinstance(found, Refusal):
        assert left == []
    else:
        assert found in left
        if not providers and not regions:
            same = [one.hourly_price_usd for one in left if one.accelerator == found.accelerator]
            assert found.hourly_price_usd == min(same)
