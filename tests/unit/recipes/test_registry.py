from __future__ import annotations

import pytest

from velodrome.errors import RecipeError
from velodrome.recipes.registry import import_callable, resolve_data, resolve_model


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `shelf_for_registry_tests` in the current folder."""
    (tmp_path / "shelf_for_registry_tests.py").write_text("class Net:\n    pass\n\n\nwidth = 3\n")
    monkeypatch.chdir(tmp_path)
    return "shelf_for_registry_tests"


def test_import_callable_finds_modules_of_the_current_folder(module):
    assert import_callable(f"{module}:Net").__name__ == "Net"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_anywhere:Net", 'there is no module "no_such_module_anywhere"'),
        ("shelf_for_registry_tests:Nett", '"Nett", which .* does not have. Did you mean "Net"|Known: Net, width'),
        ("shelf_for_registry_tests:width", "is a int, which cannot be called"),
        ("shelf_for_registry_tests:", 'not of the form "package.module:callable"'),
        ("../shelf:Net", 'not of the form "package.module:callable"'),
    ],
)
def test_import_callable_says_what_failed(module, name, message):
    with pytest.raises(RecipeError, match=message):
        import_callable(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import a_module_that_nobody_has\n", r"No module named 'a_module_that_nobody_has' \(NAME\.py, line 1\)"),
        ("width = 3\ndef net(:\n", r"whose import failed: SyntaxError: .* \(NAME\.py, line 2\)"),
        ("x = 1\nx / 0\n", r"ZeroDivisionError: division by zero \(NAME\.py, line 2\)"),
        ("import sys\n\nsys.exit(0)\n", r"it called sys\.exit\(0\) \(NAME\.py, line 3\)"),
    ],
)
def test_import_callable_error_inside_the_module_is_named_with_its_place(module, tmp_path, text, message):
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(RecipeError, match=message.replace("NAME", name)) as caught:
        import_callable(f"{name}:net")
    assert caught.value.__cause__ is not None


def test_resolve_unknown_names_show_the_nearest():
    with pytest.raises(RecipeError, match=r'is no known model\. Did you mean "mlp"'):
        resolve_model("mlq")
    with pytest.raises(RecipeError, match=r'is no known data\. Did you mean "mnist"'):
        resolve_data("mnits")
