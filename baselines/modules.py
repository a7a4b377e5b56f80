"""Methods of one's own in Python: `method.module` names an importable module, which is imported before use.

With `apply: peft` the import has to put a tuner into peft's tables, under the `peft_type` that the YAML names. With
`apply: rule` the module's function `rule(name: str) -> bool` says whether a parameter of the backbone is trained.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

from propulsion.harness.errors import UserError
from propulsion.harness.settings import MethodSpec

RULE = "rule"


def import_method(method: MethodSpec) -> ModuleType | None:
    """Import `method.module`; None where the method names none.

    Raises:
        UserError: there is no such module, or importing it fails.
    """
    if not method.module:
        return None
    try:
        return importlib.import_module(method.module)
    except Exception as error:  # whatever a module of someone's own raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"method {method.name}: method.module={method.module} cannot be imported ({reason}); put the folder that "
            "holds it on PYTHONPATH"
        ) from error


def rule_of(method: MethodSpec) -> dict[str, Callable[[str], bool]]:
    """`{"rule": function}` for a method that brings a rule, else nothing.

    Raises:
        UserError: `apply: rule` and no module, or one without a function `rule`.
    """
    if method.apply != RULE:
        return {}
    module = import_method(method)
    if module is None:
        raise UserError(f"method {method.name}: apply: rule needs method.module, a module with `def rule(name): ...`")
    found = getattr(module, RULE, None)
    if not callable(found):
        raise UserError(f"method {method.name}: the module {method.module} has no function rule(name)")
    return {RULE: found}
