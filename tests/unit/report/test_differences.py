from __future__ import annotations

from velodrome.report.differences import find_differences, flatten


def differences(*tables):
    return [(each.name, each.values) for each in find_differences(tables)]


def test_names_have_dots_and_lists_are_values():
    assert flatten({"a": {"b": {"c": 1}}, "d": [{"e": 2}], "f": {}}) == {"a.b.c": 1, "d": [{"e": 2}], "f": {}}


def test_what_differs_is_named_with_the_value_of_each_table():
    first, second = (
        {"optimizer": {"lr": 0.1, "name": "sgd"}},
        {"optimizer": {"lr": 0.2, "name": "sgd", "momentum": 0.9}},
    )
    assert differences(first, second) == [("optimizer.lr", (0.1, 0.2)), ("optimizer.momentum", (None, 0.9))]
    assert differences(first, first, second)[0] == ("optimizer.lr", (0.1, 0.1, 0.2))


def test_whole_and_decimal_numbers_of_one_value_are_equal_and_truth_is_no_number():
    assert differences({"lr": 1}, {"lr": 1.0}) == []
    assert differences({"x": True}, {"x": 1}) == [("x", (True, 1))]


def test_tables_nested_too_deeply_are_one_value():
    deep = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert len(flatten(deep)) == 1


def test_a_table_does_not_differ_from_itself():
    table = {"a": {"b": [1, {"c": None}], "": float("inf")}, "d": True, "e": {}}
    assert differences(table, table) == []


def test_what_is_nested_too_deep_to_be_written_is_cut_off():
    deep = 1
    for _ in range(900):
        deep = [deep]
    (found,) = find_differences([{"a": deep}, {"a": 2}])
    assert str(found.values[0]) == "[" * 50 + "'…'" + "]" * 50
