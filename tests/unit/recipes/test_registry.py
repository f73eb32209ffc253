from __future__ import annotations

import pytest

from velodrome.errors import RecipeError
from velodrome.recipes.registry import import_callable, resolve_data, resolve_model


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `shelf_for_registry_tests` in the current folder."""
    (tmp_path / "shelf_for_registry_tests.py").write_text("class Net:\n    pass\n\n\nwidth = 3\n")
    (tmp_path / "broken_for_registry_tests.py").write_text("import a_module_that_nobody_has\n")
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


def test_import_callable_error_inside_the_module_is_not_hidden(module):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        import_callable("broken_for_registry_tests:Net")


def test_resolve_unknown_names_show_the_nearest():
    with pytest.raises(RecipeError, match=r'is no known model\. Did you mean "mlp"'):
        resolve_model("mlq")
    with pytest.raises(RecipeError, match=r'is no known data\. Did you mean "mnist"'):
        resolve_data("mnits")
