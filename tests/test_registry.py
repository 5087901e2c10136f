"""Where cases are found: siitjax' own tasks with or without an entry point, other packages' by theirs, broken ones
too, and those that a program registers."""

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

import cases
from siitjax.base.errors import UserError
from siitjax.causal import registry
from siitjax.causal.registry import GROUP, find, own_tasks, register

MINE = replace(cases.find("left_greater"), name="mine")


@pytest.fixture
def installed(monkeypatch):
    """Has the entry points that are given, as `name=value`, and a module `plugin` with a case."""
    plugin = ModuleType("plugin")
    vars(plugin).update(CASE=MINE, TEXT="no case")
    monkeypatch.setitem(sys.modules, "plugin", plugin)
    monkeypatch.setattr(registry, "_registered", {})

    def install(*points: str) -> None:
        found = [EntryPoint(name, value, GROUP) for name, value in (point.split("=") for point in points)]
        monkeypatch.setattr(registry, "entry_points", lambda group: [point for point in found if point.group == group])
        own_tasks.cache_clear()
        registry._others.cache_clear()

    yield install
    own_tasks.cache_clear()
    registry._others.cache_clear()


@pytest.mark.parametrize("points", [(), ("cases=cases:TABLE",)])
def test_own_tasks_are_found_installed_or_not(installed, points):
    installed(*points)
    assert own_tasks() is cases.TABLE
    assert find("1") is find("left_greater")


def test_a_task_of_another_package_is_a_case_like_any_other(installed):
    installed("mine=plugin:CASE")
    assert find("mine") is MINE
    assert registry.build("mine+0").tasks == ("mine:", "duplicate_remover:")
    assert registry.described(MINE.describe()).describe() == MINE.describe()
    assert registry.number("mine") == ""
    with pytest.raises(UserError, match=r'case is "min"; did you mean "mine"\? It must be one of duplicate_remover, '):
        find("min")


def test_a_broken_one_breaks_no_other(installed):
    installed("mine=plugin:CASE", "gone=no_such_package:CASE", "text=plugin:TEXT", "other=plugin:CASE")
    assert find("mine") is MINE
    assert find("0").name == "duplicate_remover"
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        find("gone")
    with pytest.raises(UserError, match=rf'^the entry point "text" of {GROUP} gives no case; it must give the case of'):
        find("text")
    with pytest.raises(UserError, match=r'gives a case called "mine"; it must give the case of that name$'):
        find("other")


def test_an_own_name_is_not_taken_by_others(installed):
    installed("left_greater=plugin:CASE")
    assert find("left_greater").name == "left_greater"


def test_a_program_registers_a_case(installed):
    installed()
    register(MINE)
    register(MINE)
    assert find("mine") is MINE
    for taken in (replace(MINE, n_ctx=5), replace(MINE, name="left_greater")):
        with pytest.raises(UserError, match=rf'^there is a case called "{taken.name}" already; give this one another'):
            register(taken)
