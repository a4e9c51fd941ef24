"""The map of a system: who calls whom, and whose events reach whom."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from config import compose
from config.system_map import Edge, SystemMap, as_mermaid, as_svg, system_map
from runtime import Contract
from runtime.service.service import Definition
from tests.project import RENTAL


@pytest.fixture
def rental() -> SystemMap:
    return system_map(cls.definition for cls in compose.catalogue(RENTAL).values())


def test_the_map_has_every_call_and_every_subscription(rental: SystemMap) -> None:
    assert Edge("clients", "gateway", "requests") in rental.edges
    assert {(edge.origin, edge.target) for edge in rental.edges if edge.what == "requests" and edge.origin == "rides"} == {
        ("rides", "wallet"),
        ("rides", "fleet"),
    }
    assert Edge("wallet", "notices", "events", ("BalanceLow",)) in rental.edges
    assert Edge("rides", "wallet", "events", ("RideAborted", "RideEnded", "RideStarted")) in rental.edges
    assert rental.columns["clients"] < rental.columns["gateway"] < rental.columns["rides"] < rental.columns["wallet"]


def test_mermaid_has_a_line_for_each_box_and_arrow(rental: SystemMap) -> None:
    lines = as_mermaid(rental).splitlines()
    assert lines[0] == "flowchart LR"
    assert len(lines) == 1 + len(rental.services) + len(rental.edges)
    ids = {match[2]: match[1] for line in lines if (match := re.fullmatch(r'  (n\d+)\(?\["(\w+)"\]\)?', line))}
    assert f'  {ids["wallet"]} -. "BalanceLow" .-> {ids["notices"]}' in lines


def test_svg_is_a_picture_that_a_screen_reader_can_read(rental: SystemMap) -> None:
    picture = ElementTree.fromstring(as_svg(rental))
    found = [element.tag.rpartition("}")[2] for element in picture.iter()]
    assert found.count("rect") == len(rental.services)
    assert found.count("path") == len(rental.edges) + 1, "and the end of the arrows"
    titles = [element.text for element in picture.iter() if element.tag.endswith("title")]
    assert "wallet to notices: BalanceLow" in titles


def test_no_two_boxes_have_one_place(rental: SystemMap) -> None:
    picture = ElementTree.fromstring(as_svg(rental))
    places = [(element.get("x"), element.get("y")) for element in picture.iter() if element.tag.endswith("rect")]
    assert len(set(places)) == len(places)


def test_services_that_call_each_other_have_a_map() -> None:
    one, two = Contract("one"), Contract("two")
    definitions = [Definition(object, contract, (other,), {}, {}, {}, (), None) for contract, other in ((one, two), (two, one))]
    found = system_map(definitions)
    assert {(edge.origin, edge.target) for edge in found.edges} == {("one", "two"), ("two", "one")}
    ElementTree.fromstring(as_svg(found))


def test_the_picture_in_the_documentation_is_current(rental: SystemMap) -> None:
    picture = (Path(__file__).parent.parent.parent / "docs" / "images" / "system.svg").read_text(encoding="utf-8")
    assert as_svg(rental) == picture, "docs/images/system.svg is out of date: run `make docs`"
